"""GAIL: the papers' second application, the same game between a policy and a discriminator."""
