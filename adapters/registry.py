"""The frameworks that can be patched."""

from .u2pl import U2PL
from .unimatch import UNIMATCH
from .unimatch_v2 import UNIMATCH_V2

FRAMEWORKS = {framework.name: framework for framework in (U2PL, UNIMATCH, UNIMATCH_V2)}
