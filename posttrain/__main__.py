"""`python -m posttrain`, which is what `accelerate launch -m posttrain` runs."""

from posttrain.cli import main

main()
