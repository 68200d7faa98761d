"""What a checkpoint says of the head in it: ``brpg inspect``, and prototypes to go on with elsewhere."""

from brpg_lib.inspection.record import HeadRecord, load_bank, read_heads

__all__ = ["HeadRecord", "load_bank", "read_heads"]
