"""An episode at its own rate: what is said is heard however slow the environment is."""

import io
import os
import time

from services.labeler.scene import Line


def test_who_is_late_at_every_step_hears_what_is_said_and_when_all_are_gone():
    reading, writing = os.pipe()
    with os.fdopen(reading) as into, os.fdopen(writing, "w", buffering=1) as page:
        line = Line(into, io.BytesIO())
        page.write("{}\n")
        assert line.first() == {}
        heard = []
        for steps, _ in enumerate(line.ticks(0.001, lambda: True, heard.append)):
            time.sleep(0.005)
            if steps == 3:
                page.write('{"action": 1}\n')
            if heard and not page.closed:
                page.close()
            assert steps < 1000
        assert heard == [{"action": 1}]


def test_steps_come_at_their_rate_and_none_before_it_goes_on():
    reading, writing = os.pipe()
    with os.fdopen(reading) as into, os.fdopen(writing, "w", buffering=1) as page:
        line, heard, at = Line(into, io.BytesIO()), [], []
        page.write('{}\n{"action": 1}\n')
        line.first()
        for _ in line.ticks(0.05, lambda: bool(heard), heard.append):
            at.append(time.monotonic())
            if len(at) == 4:
                page.close()
        assert at[3] - at[0] > 0.14
