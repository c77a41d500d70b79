import io

import numpy as np
import pytest
from rich.console import Console

from services.report import iqm_ci95, mean_ci95, plot, read_groups, rows, table
from services.run_directory import RunDirectory
from tutelage.errors import ConfigError


def make_run(
    path, method="dagger", env="Hopper-v5", *, seed=0, rounds=12, ended=True, settings=None, steps=1024
):
    """A run that looks like one: a noisy rise to 3,500."""
    rng = np.random.default_rng([seed, len(method)])
    config = {
        "environment": {"env": env},
        "method": {"name": method, **(settings or {})},
        "debugging": {"seed": seed},
    }
    speed = {"dagger": 0.5, "ppo": 0.15}.get(method, 0.3)
    mean = 0.0
    asks = method in ("dagger", "bc")
    with RunDirectory.create(path, config) as run:
        for i in range(1, rounds + 1):
            mean = 3500 * (1 - np.exp(-speed * i)) + rng.normal(0, 120)
            if method == "bc":
                mean = 1500 + rng.normal(0, 120)
            run.log(
                {
                    "round": i,
                    "env_steps": 0 if method == "bc" else i * steps,
                    "expert_labels": (14_000 if method == "bc" else i * steps) if asks else 0,
                    "validation_mean": mean if i % 2 == 0 else None,
                    "validation_lo": mean - 200,
                    "validation_hi": mean + 150,
                },
                step=i * steps,
            )
        if ended:
            run.write_summary(
                {
                    **{
                        "method": method,
                        "env": env,
                        "seed": seed,
                        "return_mean": mean,
                        "expert_return": 3570.0,
                    },
                    **{
                        "return_ci95": [mean - 90, mean + 80],
                        "random_return": 18.0,
                        "env_steps": rounds * steps,
                    },
                    "expert_labels": rounds * steps if asks else 0,
                }
            )
    return path


def test_interval_holds_the_mean_of_normal_returns_as_often_as_it_says():
    rng = np.random.default_rng(0)
    inside = 0
    for _ in range(200):
        mean, lo, hi = mean_ci95(rng.normal(10, 3, size=30))
        assert lo < mean < hi
        inside += lo <= 10 <= hi
    assert 0.88 <= inside / 200 <= 0.99


def test_interval_degenerates_where_there_is_nothing_to_resample():
    assert mean_ci95([3.0]) == (3, 3, 3)
    assert mean_ci95([500.0] * 20) == (500, 500, 500)
    assert all(np.isnan(mean_ci95([])))
    mean, lo, hi = mean_ci95([500.0] * 19 + [100])
    assert lo < mean == 480 <= hi <= 500
    assert mean_ci95(range(1000)) == mean_ci95(range(1000))


def test_interquartile_mean_ignores_the_outer_quarters():
    values = np.array([[-1e9, 1.0], [2.0, 1.0], [4.0, 1.0], [1e9, 1.0]])
    mid, lo, hi = iqm_ci95(values)
    assert mid.tolist() == [3, 1]
    assert (lo <= mid).all()
    assert (mid <= hi).all()
    assert [part.tolist() for part in iqm_ci95([[5.0, 6.0]])] == [[5, 6]] * 3


def test_table_has_methods_then_expert_and_random(tmp_path):
    groups = read_groups([make_run(tmp_path / "a", "bc"), make_run(tmp_path / "b", "dagger")])
    out = io.StringIO()
    Console(file=out, width=200, color_system=None).print(table(rows(groups), title="Hopper-v5"))
    lines = [line.rstrip() for line in out.getvalue().splitlines() if line.strip()]
    assert lines[0] == "Hopper-v5"
    assert [line.split()[0] for line in lines[-4:]] == ["bc", "dagger", "expert", "random"]
    assert "12,288" in lines[-4]
    assert lines[-2].split()[1] == "3,570.0"


def test_seeds_of_a_folder_make_one_row(tmp_path):
    for seed in range(4):
        make_run(tmp_path / "exp" / f"seed-{seed}", seed=seed)
    found = rows(read_groups([tmp_path / "exp"]))
    assert [(row.name, row.seeds) for row in found] == [("dagger", 4), ("expert", 1), ("random", 1)]
    assert (found[0].lo or 0) < found[0].mean < (found[0].hi or 0)


def test_settings_that_differ_are_not_taken_for_seeds(tmp_path):
    runs = [make_run(tmp_path / beta, settings={"beta": beta}) for beta in ("0.5**i", "i == 0")]
    assert list(read_groups(runs)["Hopper-v5"]) == ["dagger beta=0.5**i", "dagger beta=i == 0"]


def test_a_run_that_goes_on_reports_its_last_validation(tmp_path):
    found = rows(read_groups([make_run(tmp_path / "a", ended=False)]))
    assert [row.name for row in found] == ["dagger"]
    assert found[0].hi == pytest.approx(found[0].mean + 150)
    assert found[0].labels == 12 * 1024


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plot_writes_what_its_name_says(tmp_path, suffix):
    output = tmp_path / "plots" / f"returns.{suffix}"
    plot([make_run(tmp_path / "a")], output)
    assert output.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])


def test_plot_draws_methods_seeds_and_environments(tmp_path):
    for seed in range(3):
        make_run(tmp_path / "dagger" / f"seed-{seed}", seed=seed, rounds=10 + seed)
        make_run(tmp_path / "ppo" / f"seed-{seed}", "ppo", seed=seed, steps=4096)
    make_run(tmp_path / "bc", "bc")
    make_run(tmp_path / "cheetah", env="HalfCheetah-v5", ended=False)
    plot([tmp_path / name for name in ("dagger", "ppo", "bc", "cheetah")], tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    words = (
        "dagger (1 or 3 seeds)",
        "ppo (3 seeds)",
        ">bc<",
        "Hopper-v5",
        "HalfCheetah-v5",
        "expert labels",
        "environment",
    )
    assert all(word in drawn for word in (*words, "3,570", "interquartile"))


def test_one_panel_where_labels_are_steps(tmp_path):
    plot([make_run(tmp_path / "a"), make_run(tmp_path / "b", "bc")], tmp_path / "a.svg")
    drawn = (tmp_path / "a.svg").read_text()
    assert "expert labels" in drawn
    assert "environment steps" not in drawn


def test_runs_that_are_left_out_are_counted(tmp_path):
    new, done = make_run(tmp_path / "new", rounds=1, ended=False), make_run(tmp_path / "done")
    assert plot([done], tmp_path / "a.png") == 0
    assert plot([new, done], tmp_path / "a.png") == 1


def test_what_cannot_be_plotted_is_named(tmp_path):
    run = make_run(tmp_path / "a", rounds=1, ended=False)
    with pytest.raises(ConfigError, match="validated yet"):
        plot([run], tmp_path / "a.png")
    with pytest.raises(ConfigError, match=r"\.png, \.pdf or \.svg"):
        plot([run], tmp_path / "a.txt")
    with pytest.raises(ConfigError, match="does not exist"):
        plot([tmp_path / "none"], tmp_path / "a.png")
    with pytest.raises(ConfigError, match="no runs given"):
        plot([], tmp_path / "a.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(ConfigError, match="cannot write"):
        plot([make_run(tmp_path / "b")], tmp_path / "folder.png")
