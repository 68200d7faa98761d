"""The frameworks that can be patched."""

from .bcp import BCP
from .corrmatch import CORRMATCH
from .ddfp import DDFP
from .prevmatch import PREVMATCH
from .ssl4mis import SSL4MIS
from .u2pl import U2PL
from .unimatch import UNIMATCH
from .unimatch_scenarios import MEDICAL, REMOTE_SENSING, V2_REMOTE_SENSING
from .unimatch_v2 import UNIMATCH_V2

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
        SSL4MIS,
        DDFP,
        BCP,
    )
}
