"""The benchmarks' machinery: what is counted, recorded, refused and drawn. Nothing here depends on how fast anything is."""

import importlib
import json
import math
import sys
import types
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import Mock
from xml.etree import ElementTree

import pytest
import torch

from twofold import discovery
from twofold.fast import backend

ROOT = discovery.checkout()

if ROOT:  # benchmarks are not part of an installed wheel
    sys.path.insert(0, str(ROOT))
    from benchmarks import __main__ as command
    from benchmarks import gpu, harness, plots

    CPU = torch.device("cpu")
    LIMITS = {"copy": 1e10, "float32": 1e11, "bfloat16": 2e11, "float16": 1e11, "int8": 4e11}

    def case(**changes):
        """A sum over n numbers, as a benchmark."""
        about = {"chapter": "toy.sum", "name": "sum", "axis": "N", "at": 100, "shape": "N 100", "dtype": torch.float32}
        about |= {"bytes": 400, "flops": 0, "contenders": {"twofold": torch.sum}}
        about["inputs"] = lambda generator: (harness.normal(generator, 100),)
        return harness.Case(**about | changes)

    def records(**changes):
        return {row["who"]: row for row in harness.run(case(**changes), CPU, LIMITS, budget=0.001)}

    def test_inputs_are_used_in_turn():
        seen = []
        timing = harness.measure(seen.append, [(1,), (2,), (3,)], budget=0.001)
        assert seen[3:][:7] == [1, 2, 3, 1, 2, 3, 1] and timing.n >= 5 and timing.best <= timing.seconds

    class Device:
        """A GPU of the imagination: calls move its clock, events read it, a graph replays what was called while it was captured."""

        def __init__(self):
            self.now, self.calls, self.begun = 0.0, [], 0

        def takes(self, seconds):
            def function(x):
                self.calls.append(x)
                self.now += seconds

            return function

        @contextmanager
        def graph(self, graph):
            self.begun, start = len(self.calls), self.now
            yield
            passed = self.now - start
            graph.replay = lambda: setattr(self, "now", self.now + passed)

        def Event(self, enable_timing):
            event = Mock(elapsed_time=lambda end: 1e3 * (end.at - event.at))
            event.record = lambda: setattr(event, "at", self.now)
            return event

    @pytest.fixture
    def device(monkeypatch):
        imagined = Device()
        monkeypatch.setattr(harness, "time", Mock(perf_counter=lambda: imagined.now))
        fake = {"Event": imagined.Event, "CUDAGraph": Mock, "graph": imagined.graph, "synchronize": Mock(), "Stream": Mock}
        for name, value in (fake | {"current_stream": Mock(), "stream": lambda stream: nullcontext()}).items():
            monkeypatch.setattr(torch.cuda, name, value)
        return imagined

    def test_short_calls_on_a_gpu_are_timed_as_a_graph_that_goes_round_all_inputs(device):
        sample, how = harness._device_stopwatch(device.takes(2**-13), [("x",), ("y",)])
        captured = device.calls[device.begun :]
        assert how == "graph" and len(captured) == 9 and set(captured) == {"x", "y"} and sample() == 2**-13

    def test_long_calls_on_a_gpu_are_timed_between_events(device):
        sample, how = harness._device_stopwatch(device.takes(2**-9), [("x",), ("y",)])
        assert how == "events" and device.begun == 0 and sample() == 2**-9

    def test_what_cannot_be_captured_says_so(device, monkeypatch):
        monkeypatch.setattr(torch.cuda, "graph", Mock(side_effect=RuntimeError("this peer waits for the device")))
        sample, how = harness._device_stopwatch(device.takes(2**-13), [("x",), ("y",)])
        assert how == "events, launches included (no graph: RuntimeError: this peer waits for the device)" and sample() == 2**-13

    def test_copies_of_the_inputs_outgrow_the_cache():
        sets = harness._copies(case(bytes=harness.cache_bytes(CPU) / 8), torch.Generator(), CPU)
        assert len(sets) == 25 and not torch.equal(sets[0][0], sets[1][0])

    @pytest.mark.parametrize("size, flops, expected", [(1e10, 0, ("bytes", 1)), (1e10, 5e11, ("flops", 5)), (1e10, 5e10, ("bytes", 1))])
    def test_the_floor_is_the_larger_of_moving_and_computing(size, flops, expected):
        assert harness.floor_of(case(bytes=size, flops=flops), LIMITS) == expected

    def test_growth_is_the_slope_between_logarithms():
        rows = [{"chapter": "c", "name": "n", "dtype": "d", "axis": "T", "who": "w", "at": at, "seconds": 3 * at**2} for at in (8, 2, 4)]
        rows += [{**rows[0], "at": 1, "seconds": 1000}]  # a call of any size costs something: left out of six sizes
        rows += [{**rows[0], "at": at, "seconds": 3 * at**2} for at in (16, 32)]
        (slope,) = harness.slopes([*rows, {**rows[0], "who": "twice only"}, {**rows[1], "who": "twice only"}])
        assert math.isclose(slope["slope"], 2) and (slope["start"], slope["stop"], slope["who"]) == (8, 32, "w")

    def test_a_record_says_what_was_measured():
        row = records(contenders={"peer": torch.sum, "twofold": torch.sum})["twofold"]
        assert row["of_floor"] == row["floor"] / row["seconds"] and row["floor"] == 400 / 1e10 and row["bound"] == "bytes"
        assert row["how"] == "processor" and row["same"] and row["copies"] >= 1 and "error" not in row

    @pytest.mark.parametrize(
        "broken, message",
        [
            (lambda x: 1.1 * x.sum() + 100, "away from"),
            (lambda x: x.sum() / 0, "not finite"),
            (lambda x: x.sum() * float("nan"), "not finite"),
            (lambda x: x[:2], "inf away from"),
            (lambda x: x.missing, "AttributeError"),
        ],
    )
    def test_a_wrong_answer_has_no_speed(broken, message):
        rows = records(contenders={"peer": torch.sum, "twofold": broken}, yardsticks={"another": torch.max})
        assert message in rows["twofold"]["error"] and "seconds" not in rows["twofold"]
        assert all("seconds" in rows[who] for who in ("peer", "another")) and not rows["another"]["same"]

    def test_inputs_that_cannot_be_made_are_errors_of_all():
        rows = records(inputs=lambda generator: generator.missing, contenders={"peer": torch.sum, "twofold": torch.sum})
        assert all("AttributeError" in row["error"] for row in rows.values()) and len(rows) == 2

    def test_patterns_select_chapters_and_a_quick_look_the_small_sizes():
        cases = [case(chapter=chapter, at=at) for chapter in ("a.x", "a.y", "b.x") for at in (3, 1, 2)]
        names = lambda *patterns, quick=False: [(c.chapter, c.at) for c in command.selected(cases, list(patterns), quick)]
        assert len(names()) == 9 and {c for c, _ in names("a")} == {"a.x", "a.y"} and {c for c, _ in names("*.x")} == {"a.x", "b.x"}
        assert names("b.x", quick=True) == [("b.x", 1), ("b.x", 2)] and names("c") == []

    @pytest.fixture
    def toy(monkeypatch):
        """A family of one sweep, and limits that cost nothing to know."""
        module = types.ModuleType("benchmarks.toy")
        module.cases = lambda device: [case(at=at, contenders={"twofold": torch.sum, "peer": torch.sum}) for at in (1, 10, 100)]
        monkeypatch.setitem(sys.modules, "benchmarks.toy", module)
        monkeypatch.setattr(harness, "families", lambda: ["toy"])
        monkeypatch.setattr(harness, "ceilings", lambda device, quick: LIMITS)
        monkeypatch.delenv("TRITON_INTERPRET", raising=False)
        return module

    def test_command_writes_reports_and_prints_json(toy, tmp_path, capsys):
        assert command.main(["--device", "cpu", "--quick", "--json", "--no-plots", "--output", str(tmp_path)]) == 0
        (report,) = json.loads(capsys.readouterr().out)
        (path,) = (tmp_path / harness.slug(CPU)).iterdir()
        assert path.name == "toy.json" and report == json.loads(path.read_text())
        assert [(row["at"], row["who"]) for row in report["results"]] == [(at, who) for at in (1, 10) for who in ("twofold", "peer")]
        assert report["ceilings"] == LIMITS and report["quick"] and report["not_reached"] == 0 and report["machine"]["versions"]["torch"]

    def test_command_stops_in_time_and_shows_what_it_has(toy, tmp_path, capsys):
        assert command.main(["toy", "--device", "cpu", "--no-plots", "--seconds", "-1", "--output", str(tmp_path)]) == 0
        assert json.loads((tmp_path / harness.slug(CPU) / "toy.json").read_text())["not_reached"] == 3
        assert "3 cases were not reached" in capsys.readouterr().out

    def test_command_fails_where_twofold_fails_and_where_nothing_is_named(toy, tmp_path, capsys):
        assert command.main(["nothing", "--device", "cpu"]) == 2 and "families: toy" in capsys.readouterr().err
        toy.cases = lambda device: [case(contenders={"peer": torch.sum, "twofold": lambda x: x.missing})]
        assert command.main(["--device", "cpu", "--no-plots", "--output", str(tmp_path)]) == 1
        assert "AttributeError" in capsys.readouterr().out

    def test_the_interpreter_is_never_timed(toy, monkeypatch, capsys):
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        with pytest.raises(SystemExit):
            command.main(["--device", "cpu"])
        assert "TRITON_INTERPRET" in capsys.readouterr().err

    def test_charts_are_drawn_from_reports(toy, tmp_path):
        assert command.main(["--device", "cpu", "--output", str(tmp_path)]) == 0
        chart = (tmp_path / harness.slug(CPU) / "toy.svg").read_text()
        root = ElementTree.fromstring(chart)
        assert "floor of this machine" in chart and "twofold" in chart and not root.findall(".//{http://www.w3.org/2000/svg}image")
        single = tmp_path / "single.json"
        single.write_text(json.dumps({"machine": {}, "results": [{"chapter": "c", "name": "n", "dtype": "d", "at": 1, "seconds": 1}]}))
        assert plots.draw(single) is None

    @pytest.mark.parametrize("device", ["cpu", "cuda"])
    @pytest.mark.parametrize("family", harness.families())
    def test_cases_are_well_formed(family, device):
        cases = list(importlib.import_module(f"benchmarks.{family}").cases(torch.device(device)))
        chapters = {chapter.name for chapter in discovery.chapters()}
        assert cases and len({(c.chapter, c.name, c.dtype, c.at) for c in cases}) == len(cases)
        for each in cases:
            assert each.chapter in chapters and each.chapter.startswith(f"{family}.") and each.bytes > 0
            assert "twofold" in each.contenders and len(each.contenders | each.yardsticks) > 1
            assert str(each.dtype).removeprefix("torch.") in LIMITS

    @pytest.mark.parametrize("family", harness.families())
    def test_contenders_agree_on_the_smallest_cases(family):
        cases = command.selected(importlib.import_module(f"benchmarks.{family}").cases(CPU), [], quick=True)[::2]
        with backend.use("torch"):
            refused = {(c.name, who): why for c in cases for who, why in harness._refused(c, c.inputs(torch.Generator().manual_seed(1)))}
        assert refused == {}

    def test_stages_fail_alone_and_leave_what_they_had(tmp_path):
        python = lambda name, text, **more: gpu.Stage(name, (sys.executable, "-c", text), **{"seconds": 60, **more})
        report = {"passed": 2, "failed": 1, "skipped": 0, "chapters": {"a.b": {}}, "failures": ["one"]}
        stages = [
            python("check one", f"print({json.dumps(report)!r}); raise SystemExit(1)", check=True),
            python("check crashing", "raise RuntimeError('crashed here')", check=True),
            python("check two", f"print({json.dumps(report)!r})", check=True),
            python("plain", "print('seen in the log')"),
        ]
        summary = gpu.run(stages, tmp_path, {})
        outcomes = [stage["outcome"] for stage in summary["stages"].values()]
        assert outcomes == ["failed (1)", "failed (1)", "passed", "passed"]
        assert summary["check"] == {"passed": 4, "failed": 2, "skipped": 0}
        assert summary == json.loads((tmp_path / "summary.json").read_text())
        assert json.loads((tmp_path / "check.json").read_text())["failures"] == ["one", "one"]
        assert all(text in (tmp_path / "log.txt").read_text() for text in ("crashed here", "seen in the log"))

    def test_a_stage_that_hangs_is_stopped_with_all_it_started(tmp_path):
        child = "import time; time.sleep(600)"
        hang = f"import subprocess, sys; print(subprocess.Popen([sys.executable, '-c', {child!r}]).pid, flush=True); {child}"
        later = gpu.Stage("later", (sys.executable, "-c", "pass"), 60)
        summary = gpu.run([gpu.Stage("hanging", (sys.executable, "-c", hang), 5), later], tmp_path, {})
        assert [stage["outcome"] for stage in summary["stages"].values()] == ["stopped after 5 s", "passed"]
        pid = int((tmp_path / "log.txt").read_text().splitlines()[2])
        state = Path(f"/proc/{pid}/stat")
        assert not state.exists() or state.read_text().split()[2] == "Z", "the stage's child lives on"

    def test_stages_fit_twenty_minutes_and_eight_files(tmp_path):
        stages = gpu.stages("cuda", quick=False, results=tmp_path)
        assert sum(stage.seconds for stage in stages) < 20 * 60
        assert len(["summary.json", "check.json", "log.txt", *harness.families()]) <= 8

    def test_the_whole_runs_on_a_cpu(tmp_path, capsys, monkeypatch):
        monkeypatch.delenv("TWOFOLD_PROFILE", raising=False)
        assert gpu.main(["--device", "cpu", "--quick", "--only", "benchmarks spec*", "--output", str(tmp_path)]) == 0
        printed = capsys.readouterr().out
        assert "of the floor" in printed and "passed  benchmarks speculative" in printed
        assert sorted(path.name for path in (tmp_path / harness.slug(CPU)).iterdir()) == ["log.txt", "speculative.json", "summary.json"]
