"""The first four ids of every vocabulary of the house, and how they are written."""

PAD, BOS, EOS, UNKNOWN = range(4)
SPECIAL = ("<pad>", "<bos>", "<eos>", "<unk>")
