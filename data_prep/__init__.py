"""HOI4D to HO3Pairs: the mini world, the reader, pairing, hand removal and the WebDataset shards."""
