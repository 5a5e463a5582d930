"""Learning to Remember Rare Events (Kaiser, Nachum, Roy, Bengio, ICLR 2017, arXiv 1703.03129)."""
