"""preprocess: files -> blocks of checked structures -> shards and statistics."""
