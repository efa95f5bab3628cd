"""HO3Pairs: the sample schema, the shard reader, augmentation and the DataModule."""
