# /// script
# requires-python = ">=3.11"
# dependencies = ["scikit-learn==1.9.1"]
# ///
"""Writes folds.json: for each number of cases and of folds the validation folds of scikit-learn's shuffled KFold."""

import json
import pathlib

from sklearn.model_selection import KFold

folds = {
    f"{n}/{k}": [v.tolist() for _, v in KFold(k, shuffle=True, random_state=12345).split(range(n))]
    for n in (5, 10, 24, 43, 208)
    for k in (2, 4, 5)
}
(pathlib.Path(__file__).parent / "folds.json").write_text(json.dumps(folds) + "\n")
