"""The labeler's clips: each made once, kept up to a size, and no other than what was played."""

import os
import resource
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import av
import numpy as np
import pytest

from actors.clips import Film, Filmer
from actors.environments import make_env
from actors.pictures import encoded
from actors.replay import replay
from expert_oracle.feedback import Footage
from services.labeler.clips import Clips
from tutelage.errors import Killed, NoRoom, TutelageError
from tutelage.types import EnvRecipe

CARTPOLE = EnvRecipe("CartPole-v1")
NIGHT = "tests.environments_for_tests:Night-v0"
SETTINGS = {"secret": b"of this labeler", "workers": 1, "size": 96, "grace_s": 0.0}


def footage(seed=0, length=12, start=4, recipe=CARTPOLE):
    space = make_env(recipe).action_space
    space.seed(seed)
    actions = np.stack([space.sample() for _ in range(length)])
    played = replay(recipe, seed, actions)
    return Footage(recipe, seed, actions, start, played.obs[start:length])


@pytest.fixture
def clips(tmp_path):
    made = []

    def make(name="clips", **settings):
        made.append(Clips(tmp_path / name, **SETTINGS | settings))
        return made[-1]

    yield make
    for each in made:
        each.close()


def pictures(path):
    with av.open(str(path)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


def test_a_clip_shows_the_segment_and_says_its_size(clips):
    ours = clips()
    clip = ours.film(footage()).result()
    assert {k: v for k, v in clip.items() if k != "clip"} == {
        "frames": 9,
        "fps": 50.0,
        "width": 96,
        "height": 64,
    }
    shown = pictures(ours.path(clip["clip"]))
    assert len(shown) == 9
    assert shown[0].shape == (64, 96, 3)


def test_the_same_footage_is_filmed_once_and_found_again(clips, tmp_path):
    ours = clips()
    futures = [ours.film(footage()) for _ in range(8)]
    names = {future.result()["clip"] for future in futures}
    assert len(names) == 1
    (name,) = names
    written = ours.path(name).stat().st_mtime_ns
    ours.close()
    again = clips()
    assert again.film(footage()).result() == futures[0].result()
    assert again._filmers[0].pid is None  # nothing was filmed
    assert again.path(name).stat().st_mtime_ns >= written


def test_other_footage_and_other_labelers_have_other_names(clips):
    ours, theirs = clips(), clips("theirs", secret=b"of another")
    one = ours.film(footage()).result()["clip"]
    assert ours.film(footage(seed=1)).result()["clip"] != one
    assert ours.film(footage(start=5)).result()["clip"] != one
    assert theirs.film(footage()).result()["clip"] != one
    assert theirs.path(one) is None


@pytest.mark.parametrize("name", ["", "../secret", "a" * 64, "a" * 64 + ".mp4", "A" * 64 + ".mp4", "x\0.mp4"])
def test_what_is_no_clip_is_not_found(clips, name):
    assert clips().path(name) is None


def test_what_had_to_go_is_filmed_again(clips):
    ours = clips(max_bytes=1)
    first = ours.film(footage()).result()["clip"]
    before = pictures(ours.path(first))
    second = ours.film(footage(seed=1)).result()["clip"]
    assert sorted(p.name for p in ours.folder.glob("*.mp4")) == [second]
    again = pictures(ours.path(first))
    np.testing.assert_allclose(again, before, atol=8)  # of 255: the encoder is not exact to the bit


def test_what_is_on_its_way_to_somebody_does_not_go(clips):
    ours = clips(max_bytes=1, grace_s=60.0)
    first = ours.path(ours.film(footage()).result()["clip"])
    second = ours.film(footage(seed=1)).result()["clip"]
    third = ours.film(footage(seed=2)).result()["clip"]
    assert {path.name for path in ours.folder.glob("*.mp4")} == {first.name, third}
    assert second not in ours._kept


def test_footage_of_what_had_to_go_has_an_end_too(clips):
    ours = clips(max_bytes=1, max_footage=1000)
    names = [ours.film(footage(seed=seed, length=8)).result()["clip"] for seed in range(5)]
    left = [name for name in names if (ours.folder / name).with_suffix(".footage").exists()]
    assert 1 < len(left) < 5
    assert left == names[-len(left) :]  # the latest
    ours.close()
    again = clips(max_bytes=1, max_footage=1)
    again.film(footage(seed=5, length=8)).result()
    assert len(list(again.folder.iterdir())) == 2
    assert again.path(names[0]) is None


class Quick:
    """Films nothing, at once."""

    def film(self, footage, path, *, size):
        path.write_bytes(b"v" * 10_000)
        return Film(3, 20.0, size, size)

    def close(self):
        pass


def test_videos_and_their_footage_have_one_limit(clips, monkeypatch):
    monkeypatch.setattr("services.labeler.clips.Filmer", Quick)
    ours = clips(max_bytes=200_000, max_footage=100_000)
    for k in range(9):
        ours = clips(max_bytes=200_000, max_footage=100_000)  # one finds what the other has left
        ours.film(Footage(CARTPOLE, k, np.zeros(5, np.int64), 0, np.full((5, 10_000), k, np.uint8))).result()
        assert sum(path.stat().st_size for path in ours.folder.iterdir()) < 300_000
    assert (len(list(ours.folder.glob("*.mp4"))), len(list(ours.folder.glob("*.footage")))) == (3, 4)


def test_what_somebody_has_removed_is_filmed_again(clips):
    ours = clips()
    name = ours.film(footage()).result()["clip"]
    ours.path(name).unlink()
    assert len(pictures(ours.path(name))) == 9


def test_what_was_not_recorded_so_is_refused(clips):
    true = footage()
    with pytest.raises(TutelageError, match="observation at step 4 is another than was recorded"):
        clips().film(Footage(CARTPOLE, 0, true.actions, 4, np.asarray(true.obs) + 1e-7)).result()
    ours = clips()
    with pytest.raises(TutelageError, match=r"it ends after \d+ of 300 steps"):
        ours.film(Footage(CARTPOLE, 0, np.ones(300, np.int64), 290)).result()
    assert list(ours.folder.iterdir()) == []
    assert ours.film(true).result()["frames"] == 9  # the process goes on


def test_frames_that_were_kept_are_shown_and_stay(clips):
    kept = np.random.default_rng(0).integers(0, 255, (5, 32, 32, 3), np.uint8)
    ours = clips(max_bytes=1)
    clip = ours.film(Footage(CARTPOLE, 0, np.zeros(5, np.int64), 0, frames=kept)).result()
    assert (clip["frames"], clip["width"]) == (5, 96)
    ours.film(footage()).result()
    assert ours.path(clip["clip"]).exists()


def test_jpegs_that_were_kept_are_shown_and_the_last_is_held(clips):
    greys = [np.full((40, 60, 3), 40 * n, np.uint8) for n in range(1, 5)]
    jpegs = tuple(map(encoded, greys))
    seen = Footage(CARTPOLE, 0, np.zeros(3, np.int64), 0, frames=jpegs, held=2)
    ours = clips()
    clip = ours.film(seen).result()
    assert (clip["frames"], clip["width"], clip["height"]) == (6, 96, 64)
    shown = [picture.mean() for picture in pictures(ours.path(clip["clip"]))]
    np.testing.assert_allclose(shown, [40, 80, 120, 160, 160, 160], atol=3)
    assert ours.film(replace(seen, frames=jpegs[:-1] + jpegs[:1])).result()["clip"] != clip["clip"]
    with pytest.raises(TutelageError, match="cannot identify image"):
        ours.film(replace(seen, frames=(b"no picture",) * 4)).result()


@pytest.mark.parametrize(
    ("env", "obs"), [("CartPole-v1", [0.5, 0, 0.1, 0]), ("Pendulum-v1", [0.0, 1.0, 0.5])]
)
def test_a_state_is_drawn_from_its_observation(clips, env, obs):
    obs = np.array([obs], np.float32)
    ours = clips()
    clip = ours.film(Footage(EnvRecipe(env), -1, np.zeros(0), 0, obs, posed=True)).result()
    other = ours.film(Footage(EnvRecipe(env), -1, np.zeros(0), 0, -obs, posed=True)).result()
    assert clip["frames"] == 1
    (one,), (two,) = (pictures(ours.path(each["clip"])) for each in (clip, other))
    assert np.abs(one.astype(int) - two).max() > 50


def test_a_state_of_an_environment_that_cannot_be_put_into_it_is_refused(clips):
    state = Footage(EnvRecipe("LunarLander-v3"), -1, np.zeros(0), 0, np.zeros((1, 8), np.float32), posed=True)
    with pytest.raises(TutelageError, match="nobody knows how to put LunarLander-v3 into a state"):
        clips().film(state).result()


def test_an_environment_that_remembers_is_tried_once_more_afresh(clips):
    walker = EnvRecipe("BipedalWalker-v3")
    ours = clips()
    ours.film(footage(recipe=walker)).result()
    assert ours.film(footage(seed=1, recipe=walker)).result()["frames"] == 9


def test_a_process_that_is_killed_is_replaced(tmp_path):
    with Filmer() as filmer:
        filmer.film(footage(), tmp_path / "one.mp4")
        assert filmer.pid is not None
        os.kill(filmer.pid, signal.SIGKILL)
        assert filmer.film(footage(), tmp_path / "two.mp4").frames == 9
        assert (tmp_path / "two.mp4").read_bytes() == (tmp_path / "one.mp4").read_bytes()


def test_a_process_killed_in_the_midst_of_a_clip_leaves_nothing_half_made(clips):
    ours = clips()
    long = footage(recipe=EnvRecipe("Pendulum-v1"), length=200, start=0)
    future = ours.film(long)
    (filmer,) = ours._filmers
    deadline = time.monotonic() + 60
    while not list(ours.folder.glob(".*")) and time.monotonic() < deadline:
        time.sleep(0.001)
    assert filmer.pid is not None
    os.kill(filmer.pid, signal.SIGKILL)
    clip = future.result()
    assert clip["frames"] == 201
    assert len(pictures(ours.path(clip["clip"]))) == 201


def test_an_unknown_environment_is_refused_by_name(clips):
    with pytest.raises(TutelageError, match="NoSuchEnv"):
        clips().film(Footage(EnvRecipe("NoSuchEnv-v0"), 0, np.zeros(3), 0)).result()


def test_mujoco_clips_of_several_lengths(clips, offscreen_gl):
    ours = clips(codec="webm")
    cheetah = EnvRecipe("HalfCheetah-v5")
    for start in (0, 6):
        clip = ours.film(footage(recipe=cheetah, length=10, start=start)).result()
        shown = pictures(ours.path(clip["clip"]))
        assert len(shown) == 11 - start
        assert all(np.std(picture) > 10 for picture in shown)


def test_black_pictures_are_shown_where_they_are_meant(clips):
    assert clips().film(footage(recipe=EnvRecipe(NIGHT))).result()["frames"] == 9
    blind = EnvRecipe(NIGHT, {"draws": "nothing"})
    with pytest.raises(TutelageError, match="draws no pictures"):
        clips().film(footage(recipe=blind)).result()


def test_what_kills_every_process_is_refused_and_the_next_is_filmed(clips):
    ours = clips()
    fatal = ours.film(footage(recipe=EnvRecipe(NIGHT, {"draws": "death"})))
    after = ours.film(footage())
    with pytest.raises(
        Killed, match=r"cannot render .*Night-v0: the rendering process was killed by SIGKILL"
    ):
        fatal.result()
    assert after.result()["frames"] == 9
    assert {path.suffix for path in ours.folder.iterdir()} == {".mp4", ".footage"}
    assert len(list(ours.folder.iterdir())) == 2


@pytest.mark.parametrize(("room", "words"), [(200, "cannot render"), (20_000, "clips cannot be written")])
def test_a_full_disk_is_told_from_other_faults_and_leaves_nothing_half_made(clips, room, words):
    ours = clips()
    seen = np.zeros((9, 8, 8, 3), np.uint8)
    long = Footage(CARTPOLE, 0, np.zeros(9, np.int64), 0, np.zeros((9, 900)), frames=seen)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
        with pytest.raises(NoRoom, match=words):
            ours.film(long).result()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(ours.folder.iterdir()) == []


def test_one_process_turns_from_one_simulator_to_another(clips, offscreen_gl):
    ours = clips()
    for seed in range(3):  # what is left of the one before must not take away the next one's context
        for env in ("HalfCheetah-v5", "Hopper-v5", "CartPole-v1"):
            clip = ours.film(footage(seed=seed, length=6, recipe=EnvRecipe(env))).result()
            assert all(np.std(picture) > 5 for picture in pictures(ours.path(clip["clip"])))


def test_several_threads_and_processes_make_one_of_each(clips):
    ours = clips(workers=2, max_bytes=1)
    wanted = [footage(seed=seed) for seed in range(4)]
    with ThreadPoolExecutor(8) as threads:
        made = list(threads.map(lambda n: ours.film(wanted[n % 4]).result(), range(32)))
        assert len({clip["clip"] for clip in made}) == 4
        fetched = list(threads.map(lambda clip: ours.path(clip["clip"]), made))
    assert all(path.suffix == ".mp4" for path in fetched)
    assert not list(ours.folder.glob(".*"))
    assert len(list(ours.folder.glob("*.footage"))) == 4
