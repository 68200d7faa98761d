"""brpg-lib: boundary-refined prototypes for semi-supervised segmentation trainers."""

from brpg_lib.batches import LabeledBatch, UnlabeledBatch
from brpg_lib.beside import find_subpackages
from brpg_lib.cluster.bank import PrototypeBank
from brpg_lib.cluster.clusterer import OnlineClusterer, Prototypes
from brpg_lib.cluster.splitter import AdaptiveSplitter, Split
from brpg_lib.collect.queue import FeatureQueue
from brpg_lib.collect.sampler import ConfidenceSampler
from brpg_lib.collect.samples import Samples
from brpg_lib.config import BRPGConfig
from brpg_lib.head import PrototypeHead
from brpg_lib.learn.loss import PrototypeContrastiveLoss, prototype_contrastive_loss
from brpg_lib.output import HeadOutput
from brpg_lib.projection import ProjectionHead
from brpg_lib.schedule import Phase, Schedule
from brpg_lib.tap import FeatureTap
from brpg_lib.version import __version__

__all__ = [
    "AdaptiveSplitter",
    "BRPGConfig",
    "ConfidenceSampler",
    "FeatureQueue",
    "FeatureTap",
    "HeadOutput",
    "LabeledBatch",
    "OnlineClusterer",
    "Phase",
    "ProjectionHead",
    "PrototypeBank",
    "PrototypeContrastiveLoss",
    "PrototypeHead",
    "Prototypes",
    "Samples",
    "Schedule",
    "Split",
    "UnlabeledBatch",
    "__version__",
    "prototype_contrastive_loss",
]

find_subpackages()
