"""Options of the examples' scripts for a run of a second."""

SMALL = "--data digits --network 20 --limit 200 --batch-size 50 --seed 3 --quiet".split()
