"""shrinkbook: seven papers on compressing convolutional networks, replicated with every number traceable to a run."""
