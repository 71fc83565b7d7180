"""Run a scenario: start a relay, run locust against it and collect the results.

Owns the relay and the locust processes. `loadtest.verdict` judges the results.
"""

from __future__ import annotations

import os
import secrets
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import msgspec

from loadtest import verdict
from loadtest.plan import SCENARIOS, LoadOptions, Scenario
from loadtest.rig.harness import MeasuredServer, raise_descriptor_limit
from loadtest.rig.targets import RELAY
from loadtest.verdict import Criterion, Outcome
from loadtest.watch import Watch, sample, sample_when
from relay.config.formats import parse_size

HERE = Path(__file__).parent
RESULTS = HERE / "results"
LATE_S = 120.0
QUIT_S = 30.0
WARM_UP_SHARE = 0.4


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadRun:
    """A scenario and the options of its run.

    Args:
        name: name of the scenario.
        options: its numbers.
        publish: how events are published; the scenario's default if empty.
        workers: locust processes beside the master; 0 means one process for everything.
        ui: start and stop the run from locust's web page.
        policies: policies to run in the scenario `slow`; all if empty.
        pairs: maximum number of runs of one policy in the scenario `slow`, if its latency is too high.
        results: folder for the reports.
    """

    name: str
    options: LoadOptions
    publish: str = ""
    workers: int = 0
    ui: bool = False
    policies: tuple[str, ...] = ()
    pairs: int = 3
    results: Path = RESULTS
    token: str = field(default_factory=lambda: secrets.token_urlsafe(16))

    @property
    def scenario(self) -> Scenario:
        """The scenario with this name."""
        return SCENARIOS[self.name]

    def server(self, *extra: str) -> MeasuredServer:
        """Return a relay for the scenario, to be used as a context manager."""
        raise_descriptor_limit()
        return MeasuredServer(RELAY, extra=("--publish-token", self.token, *self.scenario.server, *extra))


def load(run: LoadRun, server: MeasuredServer, name: str, policy: str = "drop-oldest") -> Outcome:
    """Put locust's load on a server and write the reports.

    Args:
        run: the scenario and its options.
        server: the server under test.
        name: name of the reports.
        policy: the policy by which slow streams are judged.
    """
    run.results.mkdir(parents=True, exist_ok=True)
    report = run.results / f"{name}.json"
    report.unlink(missing_ok=True)
    plan = run.scenario.build(run.options)
    before = sample(server)
    with Watch(server) as watch:
        environment = {**os.environ, "PYTHONPATH": str(HERE.parent), "LOADTEST_TOKEN": run.token}
        command = _command(run, server, name, policy, report)
        code = _locust(command, environment, _timeout_s(run, plan.seconds))
    after = sample_when(server, lambda now: now.streams == 0)
    saw = msgspec.json.decode(report.read_bytes()) if report.exists() else []
    return Outcome(
        plan=plan, code=code, saw=saw, before=before, after=after, samples=watch.samples, stats=server.stats()
    )


def _locust(command: list[str], environment: dict[str, str], timeout_s: float | None) -> int:
    """Run locust and return its exit code. Ctrl-C ends a run with the web page; locust receives it too."""
    with subprocess.Popen(command, env=environment) as process:
        try:
            return process.wait(timeout_s)
        except KeyboardInterrupt:
            return process.wait(QUIT_S)
        except subprocess.TimeoutExpired:
            process.kill()
            raise


def _timeout_s(run: LoadRun, seconds: float) -> float | None:
    return None if run.ui else seconds + LATE_S


def _command(run: LoadRun, server: MeasuredServer, name: str, policy: str, report: Path) -> list[str]:
    options = run.options
    command = [
        *(sys.executable, "-m", "locust", "--locustfile", str(HERE / "locustfile.py")),
        *("--host", f"http://127.0.0.1:{server.port}", "--unix", str(server.unix)),
        *("--scenario", run.name, "--publish", run.publish or run.scenario.publish, "--policy", policy),
        *("--html", str(run.results / f"{name}.html"), "--csv", str(run.results / name), "--report", str(report)),
        *("--only-summary", "--loglevel", "WARNING"),
    ]
    numbers = asdict(options)
    numbers["real-users"] = numbers.pop("users")
    command += [text for key, value in numbers.items() for text in (f"--{key.replace('_', '-')}", str(value))]
    if not run.ui:
        command.append("--headless")
    if run.workers:
        port = str(free_port())
        command += ["--processes", str(run.workers), "--master-bind-port", port, "--master-port", port]
    return command


def free_port() -> int:
    """Find a free port for the master."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port: int = probe.getsockname()[1]
        return port


def judged(run: LoadRun) -> list[Criterion]:
    """Run the scenario and return its criteria with the measured values."""
    if run.name == "slow":
        return _slow(run)
    with run.server() as server:
        if run.name == "churn":
            shorter = replace(run.options, seconds=run.options.seconds * WARM_UP_SHARE)
            load(replace(run, options=shorter), server, "churn-warm-up")
        outcome = load(run, server, run.name)
    return verdict.whole(outcome) + [each for judge in JUDGES[run.name] for each in judge(outcome)]


JUDGES: dict[str, list[Callable[[Outcome], list[Criterion]]]] = {
    "steady": [],
    "burst": [verdict.lag_back],
    "storm": [verdict.recovered],
    "topics": [],
    "churn": [verdict.back_again],
    "soak": [verdict.steady_memory],
}


def _slow(run: LoadRun) -> list[Criterion]:
    """Run once without slow streams and once per policy with them, each time on a new server."""
    without = _without_slow(run)
    criteria = verdict.whole(without)
    for policy in run.policies or run.scenario.policies:
        criteria += _with_slow(run, policy, without.quantile_ms(0.99))
    return criteria


def _without_slow(run: LoadRun) -> Outcome:
    with run.server() as server:
        return load(replace(run, options=replace(run.options, slow_users=0)), server, "slow-none")


def _with_slow(run: LoadRun, policy: str, p99_without_ms: float) -> list[Criterion]:
    """Run one policy; if only the latency fails, repeat it with a new run without slow streams, at most `pairs` runs.

    Two runs of the same kind can differ by more than the limit if other processes use the machine during one of them.
    """
    history_bytes = parse_size(run.scenario.server[run.scenario.server.index("--history-bytes") + 1])
    for again in range(run.pairs):
        with run.server("--policy", policy) as server:
            outcome = load(run, server, f"slow-{policy}", policy)
        criteria = verdict.whole(outcome) + verdict.promise_kept(outcome, policy, history_bytes)
        latency = verdict.cost_of_slow(outcome, policy, p99_without_ms)
        if latency.passed or again == run.pairs - 1 or not all(each.passed for each in criteria):
            break
        p99_without_ms = _without_slow(run).quantile_ms(0.99)
    return [*criteria, latency]
