"""preprocess: files -> pieces -> blocks of checked structures -> shards and statistics."""

from mace_train.data.preprocess.preprocess import preprocess

__all__ = ["preprocess"]
