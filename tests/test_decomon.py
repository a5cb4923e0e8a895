"""Bounds of single logits against another library's, stored by bench/decomon.py."""

import json

import numpy as np
import pytest
import tensorflow as tf

from bench import decomon
from tfrobust.bounds import Box, Program, Region, backward

KNOWN = json.loads(decomon.PATH.read_text())


def logits(program, box, method):
    """Lower and upper bounds of each logit."""
    region = Region.of(box)
    if method == "forward-ibp":
        return program.interval(region)
    boxes = program.boxes(region, [program.output])
    if method == "crown":
        boxes = backward.tightened(program, region, "adaptive")
    rows = tf.tile(tf.eye(program.classes)[None], (4, 1, 1))
    ends = []
    for sign in (1.0, -1.0):
        back, offset = backward.pull(program, boxes, sign * rows, program.output, "adaptive")
        ends.append(sign * (region.least(back) + offset))
    return ends


@pytest.mark.parametrize("name", ["deep", "wide"])
def test_bounds_are_those_of_decomon(name):
    net = decomon.nets()[name]
    program = Program(net)
    for method in decomon.METHODS:
        for radius in decomon.RADII:
            box = Box(*map(tf.constant, decomon.boxes(net, radius)))
            found = logits(program, box, method)
            for ours, theirs in zip(found, KNOWN[f"{name} {method} {radius}"], strict=True):
                np.testing.assert_allclose(ours, theirs, atol=1e-4, err_msg=f"{method} {radius}")
