"""Predictions of speed: what is counted is counted right. Whether the model is, only a GPU can tell."""

import dataclasses
import sys

import numpy as np

from twofold import discovery

ROOT = discovery.checkout()

if ROOT:  # benchmarks are not part of an installed wheel
    sys.path.insert(0, str(ROOT))
    from benchmarks.experiments import predicted_attention as predicted

    def test_predictions_count_what_a_mask_leaves():
        """Tiles against a mask written out, cut into blocks; operations against a product over every pair."""
        for t_q, t_k, rows, keys in ((1, 1, 4, 4), (9, 9, 4, 2), (13, 13, 2, 5), (5, 12, 3, 4), (16, 16, 16, 4), (12, 5, 4, 4)):
            seen = np.tri(t_q, t_k, t_k - t_q, dtype=bool)
            blocks = [seen[i : i + rows, j : j + keys].any() for i in range(0, t_q, rows) for j in range(0, t_k, keys)]
            assert predicted.tiles(t_q, t_k, rows, keys, causal=True) == sum(blocks)
            assert predicted.tiles(t_q, t_k, rows, keys, causal=False) == len(blocks)
        (whole,) = predicted.forward(2, 3, 256, causal=False)
        assert whole.scores == 2 * 3 * 256 * 256 and whole.programs == 2 * 3 * 2
        (causal,) = predicted.forward(1, 1, 256, causal=True)
        assert causal.scores == np.tri(256, dtype=bool)[127::128, ::64].sum() * 128 * 64  # the last row of a block sees its tiles

    def test_predictions_are_sums_and_the_longest_of_their_parts():
        launch = predicted.Launch("of/none", programs=66, scores=10**9, products=2, other=4.5, bytes=10**9)
        times, full = (predicted.seconds(dataclasses.replace(launch, programs=n)) for n in (66, 10**6))
        assert times["matrix"] == 2 * full["matrix"] and times["exponentials"] == 2 * full["exponentials"]  # half the device is idle
        assert times["memory"] == full["memory"] == 1e9 / predicted.MEMORY  # half of it still reads as fast as memory gives
        few = predicted.seconds(dataclasses.replace(launch, programs=8))
        assert few["memory"] == 1e9 / (8 * 64 * predicted.CLOCK)
