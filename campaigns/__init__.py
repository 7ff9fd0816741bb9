"""Campaigns: long, seeded attempts to make a save or a load go wrong.

Each is a module with a command line, ``python -m campaigns.<name> --seed 1 --runs 1000``, and a
function ``run(seed, runs)`` whose short form the tests call. ``make campaign`` runs the long forms
of all of them.
"""
