"""The calculator's figure against the paper's numbers and a bill made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from dit_edu.lab.figures import cost_calculator
from dit_edu.lab.figures.scaling import PATCHES, RESOLUTIONS, RUNS, SIZES


def test_the_calculator_shows_the_papers_costs():
    curves, bars, model, image = cost_calculator().panels
    xl, two = SIZES.index("XL"), PATCHES.index(2)
    at = [RESOLUTIONS.index(pixels) for pixels in (256, 512, 1024)]
    surcharge = np.asarray(curves.lines[xl].y)[two, at]
    # The paper's 524.6 at 512 px over 4 x 118.64, and the formula's 2909.2 over 16 x 118.62.
    assert surcharge == pytest.approx([1, 524.6 / 474.56, 2909.2 / 1897.9], rel=1e-3)
    shares = np.asarray(bars.values)
    np.testing.assert_allclose(shares.sum(-1), 100)
    assert np.round(shares[xl, two, at, 1], 1).tolist() == [3.6, 12.9, 37.2]
    rows = {name: text for name, text in model.rows[xl][two][at[0]]}
    assert (rows["parameters"], rows["tokens N"]) == ("675 M", "256")
    assert dict(model.rows[xl][two][at[1]])["a pass"] == "524.5 GMACs"
    guided = dict(image.rows[xl][two][at[0]][list(RUNS).index("250 guided")])
    assert guided == {"passes": "500", "MACs": "59.3 T"}  # 500 x 118.62 G
