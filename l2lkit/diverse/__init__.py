"""L2L-DA: the recursive, stochastic generator of the successor paper, and the AdvGAN it is held
against."""
