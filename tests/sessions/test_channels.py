"""A controller that dies, is stopped or passes nothing on costs no variable, and is named."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from nbdist.errors import TransferError
from nbdist.launchers.launcher import connection_file
from nbdist.processes import ProcessId
from nbdist.sessions.channels import Channels, State, judge
from nbdist.sessions.session import Session
from nbdist.view.hang import hang_headline
from tests.sessions.driving import PATIENCE_S, error, finished, ranks, statuses, values
from tests.sessions.fakes import NO_PID, FakeProcesses, fake_processes
from tests.waiting import wait_until


@pytest.mark.parametrize(
    ("streaks", "expected"),
    [
        ({"mux": 0, "control": 0, "iopub": 0}, "passing"),
        ({"mux": -2, "control": -2, "iopub": 9}, "passing"),
        ({"mux": -3, "control": 9, "iopub": 9}, "broken"),
        ({"mux": -9, "control": -9, "iopub": 3}, "broken"),
        ({"mux": -3, "control": -3, "iopub": -3}, "silent"),
        ({"mux": -3, "control": -1, "iopub": -1}, "silent"),
        ({"mux": -9, "control": 1, "iopub": 2}, "silent"),  # it may just go on again
    ],
)
def test_a_relay_is_broken_only_where_another_one_works(
    streaks: dict[str, int], expected: State
) -> None:
    assert judge(streaks) == expected


# With relays of the test ------------------------------------------------------------------------


class FakeController:
    """Passes messages on as the controller does, over those relays that it is to."""

    def __init__(self, processes: FakeProcesses) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.silent: set[str] = set()
        interface = f"ipc://{processes.folder.channels}"
        sockets = {"mux": (1, 2), "control": (3, 4), "iopub": (5, 6)}
        for index, side in enumerate(("client", "engine")):
            ports = {name: numbers[index] for name, numbers in sockets.items()}
            path = connection_file(processes.folder, side)
            processes.folder.write_json(path, {"interface": interface, **ports})
        self._is_over = threading.Event()
        self._threads = [
            threading.Thread(target=self._relay, args=(name, interface, *numbers))
            for name, numbers in sockets.items()
        ]
        for thread in self._threads:
            thread.start()

    def _relay(self, name: str, interface: str, near_number: int, far_number: int) -> None:
        is_output = name == "iopub"
        near = self.context.socket(zmq.XPUB if is_output else zmq.ROUTER)
        far = self.context.socket(zmq.XSUB if is_output else zmq.ROUTER)
        near.bind(f"{interface}:{near_number}")
        far.bind(f"{interface}:{far_number}")
        poller = zmq.Poller()
        poller.register(near, zmq.POLLIN)
        poller.register(far, zmq.POLLIN)
        while not self._is_over.is_set():
            for socket, _ in poller.poll(50):
                message = socket.recv_multipart()
                if not is_output:
                    message[:2] = message[1::-1]
                is_subscription = is_output and socket is near
                if is_subscription or name not in self.silent:
                    (far if socket is near else near).send_multipart(message)
        near.close(linger=0)
        far.close(linger=0)

    def close(self) -> None:
        self._is_over.set()
        for thread in self._threads:
            thread.join()
        self.context.term()


@pytest.fixture
def processes(run_folder: Path) -> FakeProcesses:
    return fake_processes(run_folder, 2)


@pytest.fixture
def controller(processes: FakeProcesses) -> Iterator[FakeController]:
    controller = FakeController(processes)
    channels = Channels(processes)
    channels.start()
    yield controller
    channels.close()
    controller.close()


def test_a_controller_that_passes_nothing_on_is_named_until_it_does(
    processes: FakeProcesses, controller: FakeController
) -> None:
    processes.controller = ProcessId(NO_PID, 0)

    controller.silent = {"mux", "control", "iopub"}
    wait_until(lambda: processes.blockage is not None, "the silence to be noticed")
    assert f"pid {NO_PID}) passes nothing on" in (processes.blockage or "")
    assert "`%dist recover`" in (processes.blockage or "")

    controller.silent = set()
    wait_until(lambda: processes.blockage is None, "messages to pass again")


def test_a_controller_with_a_broken_relay_is_ended_so_that_another_takes_its_place(
    processes: FakeProcesses, controller: FakeController
) -> None:
    with subprocess.Popen(["sleep", "600"]) as process:
        processes.controller = ProcessId.of(process.pid)

        controller.silent = {"mux"}

        try:
            assert process.wait(PATIENCE_S) == -signal.SIGKILL
        finally:
            process.kill()


# With real ranks --------------------------------------------------------------------------------


def controller_of(session: Session) -> ProcessId:
    process = session._processes.folder.process("controller")
    assert process is not None
    return process


@pytest.mark.ranks
@pytest.mark.parametrize("signum", [signal.SIGKILL, signal.SIGTERM])
def test_a_controller_that_dies_costs_no_variable(
    run_folder: Path, tmp_path: Path, signum: signal.Signals
) -> None:
    with ranks(2) as session:
        values(session, "x = 5 + rank")
        run = session.run(
            f"import pathlib, time\npathlib.Path(f'{tmp_path}/{{rank}}').touch()\n"
            f"while not pathlib.Path('{tmp_path}/go').exists(): time.sleep(0.01)\ny = 7"
        )
        wait_until(lambda: len(list(tmp_path.iterdir())) == 2, "both ranks to be busy")

        os.kill(controller_of(session).pid, signum)

        assert run.wait(20)
        assert statuses(run) == ["stopped", "stopped"]
        assert error(run).ename == "ControllerLost"
        behind = session.run("x + y")  # waits for the cell that goes on
        (tmp_path / "go").touch()
        assert list(behind.result(20)) == [12, 13]
        assert session.trouble is None
        assert values(session, "nbdist.all_reduce(x)") == [11, 11]
        assert session.busy_ranks == ()
        assert session.pull("y")[1] == 7


@pytest.mark.ranks
def test_a_rank_can_be_replaced_over_a_controller_that_took_anothers_place(
    run_folder: Path,
) -> None:
    with ranks(2) as session:
        values(session, "x = 5")
        os.kill(controller_of(session).pid, signal.SIGKILL)
        wait_until(lambda: session.trouble is not None, "the death to be noticed")
        session.recover()

        os.kill(session._processes.pids[1], signal.SIGKILL)
        wait_until(lambda: session.dead_ranks == (1,), "rank 1 to be gone")

        assert session.recover().replaced == (1,)
        assert values(session, "nbdist.all_reduce(x)") == [10, 10]


@pytest.mark.ranks
def test_a_stopped_controller_is_named_and_lets_all_go_on_when_it_continues(
    run_folder: Path,
) -> None:
    with ranks(2) as session:
        values(session, "x = 5")
        pid = controller_of(session).pid

        os.kill(pid, signal.SIGSTOP)
        run = session.run("x + rank")
        wait_until(lambda: run.hang is not None, "the cell to be told")

        assert f"pid {pid}) is stopped from outside" in (hang_headline(run.hang) or "")
        with pytest.raises(TransferError, match=f"kill -CONT {pid}"):
            session.pull("x")
        assert [state.state for state in session.states()] == ["out of reach"] * 2

        os.kill(pid, signal.SIGCONT)
        assert list(run.result(20)) == [5, 6]
        wait_until(lambda: session.trouble is None, "messages to pass again")
        assert values(session, "nbdist.all_reduce(x)") == [10, 10]


@pytest.mark.ranks
def test_recover_puts_another_in_the_place_of_a_stopped_controller(run_folder: Path) -> None:
    with ranks(2) as session:
        values(session, "x = 5")
        os.kill(controller_of(session).pid, signal.SIGSTOP)
        run = session.run("x")
        wait_until(lambda: session.trouble is not None, "the silence to be noticed")

        session.recover()

        assert run.wait(20)
        assert error(run).ename == "ControllerLost"
        assert values(session, "nbdist.all_reduce(x)") == [10, 10]


@pytest.mark.ranks
def test_a_message_that_makes_no_sense_is_no_traceback_beside_the_notebook(
    run_folder: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with ranks(1) as session:
        path = connection_file(session._processes.folder, "engine")
        ports = json.loads(path.read_text(encoding="utf-8"))
        with zmq.Context() as context, context.socket(zmq.PUB) as socket:
            socket.connect(f"{ports['interface']}:{ports['iopub']}")

            def is_taken() -> bool:
                socket.send_multipart([b"junk", b"\xff"])
                return session.trouble is not None

            wait_until(is_taken, "the junk to arrive")

        assert "could not be taken" in (session.trouble or "")
        assert finished(session, "1").done
        assert values(session, "rank") == [0]
    assert capfd.readouterr().err == ""
