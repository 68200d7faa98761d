"""The frameworks that can be patched."""

from .frameworks.allspark import ALLSPARK
from .frameworks.bcp import BCP
from .frameworks.corrmatch import CORRMATCH
from .frameworks.ddfp import DDFP
from .frameworks.prevmatch import PREVMATCH
from .frameworks.semivl import SEMIVL
from .frameworks.ssl4mis import SSL4MIS
from .frameworks.u2pl import U2PL
from .frameworks.unimatch import UNIMATCH
from .frameworks.unimatch_scenarios import MEDICAL, REMOTE_SENSING, V2_REMOTE_SENSING
from .frameworks.unimatch_v2 import UNIMATCH_V2

FRAMEWORKS = {
    framework.name: framework
    for framework in (
        U2PL,
        UNIMATCH,
        UNIMATCH_V2,
        REMOTE_SENSING,
        V2_REMOTE_SENSING,
        MEDICAL,
        CORRMATCH,
        PREVMATCH,
        ALLSPARK,
        SEMIVL,
        SSL4MIS,
        DDFP,
        BCP,
    )
}
