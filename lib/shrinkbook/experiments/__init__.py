"""What to run for each paper: the only room that sees methods, nets, training, measures and evidence together."""
