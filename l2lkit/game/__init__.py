"""The paper: one game, whose inner solver is exchangeable.

On first reading: `solver` (what a solver is), `fixed` and `learned` (the solvers), `networks`,
`classifiers`, `recipe` (a game as data), `step` (the game) and `evaluate` (who survives). Later:
`loop` (training: many steps), `orders` (other orders of the two moves), `guard` (what a caller may
hand to a solver), `interpolation`, `cw`, `autoattack`, `search`, `free`, `survives`, `unet`,
`resnets`, `toy` (the game in two numbers), `identity` (what tells things apart) and `cpu` (speed
alone).
"""
