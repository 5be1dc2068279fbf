"""The bench room: the same sampler measured against its rivals, quality and cost in the same row."""
