"""Where stock was measured to be faster, an accelerated model is stock."""

from pathlib import Path

import families
import pytest
import torch

import bigkernels
from bigkernels.bench import grid, report
from bigkernels.integrations import slower

GRID = Path(__file__).parents[1] / "benchmarks" / "results" / "grid.json"


@pytest.mark.parametrize("name", ["bert", "distilbert"])
def test_a_batch_in_the_table_runs_stock_and_only_that_one(name, monkeypatch):
    stock, model = families.tiny(name), families.tiny(name)
    model.load_state_dict(stock.state_dict())
    for norm in [m for m in stock.modules() if type(m) is torch.nn.LayerNorm]:
        norm.__class__ = bigkernels.nn.LayerNorm  # in its place also where the layers are stock
    handle = bigkernels.accelerate(model)
    cell = slower.Cell("float32", model.config.hidden_size, 2, 8)
    monkeypatch.setattr(slower, "table", lambda: frozenset({cell}))
    ids = torch.arange(16).view(2, 8) % 20 + 5

    def ran(batch, **others):
        model(batch, **others)
        return next(iter(handle.report().padded.values()), "packed")

    with torch.no_grad():
        assert torch.equal(model(ids).last_hidden_state, stock.eval()(ids).last_hidden_state)
        assert ran(ids) == "stock is faster for batches of about 2x8"
        assert ran(ids[:, :4]) == "packed"
        assert ran(ids.repeat(2, 1)) == "packed"
        padding = torch.ones_like(ids)
        assert ran(ids, attention_mask=padding).startswith("stock is faster")
        padding[0, 5:] = 0
        assert ran(ids, attention_mask=padding) == "packed"
        with torch.autocast("cpu", torch.bfloat16):
            assert ran(ids) == "packed"
    assert ran(ids) == "packed"  # gradients may be wanted


def test_the_table_is_what_the_committed_grid_says():
    made = grid.slower_table(report.load(GRID)) if GRID.is_file() else '{"cells": []}\n'
    assert slower.TABLE.read_text() == made
    for cell in slower.table():
        assert cell.precision in grid.AGAINST
