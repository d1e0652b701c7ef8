from __future__ import annotations

import json
import subprocess
import sys

from nbdist.view import render
from nbdist.wire import CallCount, output_from_json, output_to_json
from tests.view.build import failed, ok, png, result, shown, stdout, value_error, waited


def test_nothing_to_show_is_an_empty_bundle() -> None:
    assert render([ok(0), ok(1)]) == {}


def test_a_bundle_has_html_and_text() -> None:
    assert set(render([ok(0, stdout("a\n"))])) == {"text/html", "text/plain"}


def test_the_same_outputs_give_the_same_bytes_in_whatever_order_ranks_answer() -> None:
    ranks = [failed(r, value_error("bad") if r == 1 else waited(1), stdout("a")) for r in range(4)]

    assert render(ranks) == render(ranks[::-1])


def test_the_way_through_json_changes_nothing() -> None:
    outputs = (stdout("a\n"), shown({"image/png": png("AAAA")}), result("nan", float("nan")))
    sent = tuple(output_from_json(json.loads(json.dumps(output_to_json(o)))) for o in outputs)

    assert render([ok(0, *outputs)]) == render([ok(0, *sent)])


def test_random_display_ids_do_not_show() -> None:
    one, two = (shown({"text/plain": "x"}, display_id) for display_id in ("4f2a", "9b1c"))

    assert render([ok(0, one)]) == render([ok(0, two)])
    assert render([ok(0, one), ok(1, two)])["text/plain"] == "[ranks 0, 1] x"


def test_unfolded_equal_ranks_are_shown_one_by_one() -> None:
    ranks = [ok(rank, stdout("a\n")) for rank in range(2)]

    assert render(ranks, fold=False)["text/plain"] == "[rank0] a\n[rank1] a"


def test_streamed_text_is_not_shown_again() -> None:
    ranks = [ok(0, stdout("a\n"), result("[1]"))]

    assert render(ranks, has_text=False)["text/plain"] == "[rank0] [1]"
    assert render([ok(0, stdout("a\n"))], has_text=False) == {}


def test_four_ranks_of_2000_different_lines_stay_within_the_budget_of_bytes() -> None:
    texts = [
        "".join(f"rank {rank} step {i} loss {1 / (i + 1)}\n" for i in range(2000))
        for rank in range(4)
    ]

    bundle = render(ok(rank, stdout(text)) for rank, text in enumerate(texts))

    num_bytes = len(json.dumps(bundle, ensure_ascii=False).encode())
    assert num_bytes < 2.3 * sum(map(len, texts))


def test_what_ranks_have_in_common_is_sent_once() -> None:
    texts = [
        "".join(f"step {i} loss {1 / (i + 1 + rank * (i % 100 == 0))}\n" for i in range(2000))
        for rank in range(4)
    ]

    bundle = render(ok(rank, stdout(text)) for rank, text in enumerate(texts))

    num_bytes = len(json.dumps(bundle, ensure_ascii=False).encode())
    assert num_bytes < 0.8 * sum(map(len, texts))
    assert bundle["text/plain"].count("\n[rank3] ") == 20


def test_one_line_of_64_ranks_is_small() -> None:
    bundle = render(ok(rank, stdout(f"rank {rank} has {rank * 3}\n")) for rank in range(64))

    assert len(bundle["text/html"]) < 10_000


def test_collectives_are_in_both_forms() -> None:
    count = CallCount("all_reduce", "0", (0, 1), 4, 12 * 2**20)

    bundle = render([ok(0), ok(1)], calls={0: [count], 1: [count]})

    assert bundle["text/plain"] == "4 × all_reduce (12 MiB) · group world"
    assert bundle["text/plain"] in bundle["text/html"]


def test_the_size_of_the_session_tells_the_world_from_a_group_of_the_ranks_that_ran() -> None:
    calls = {rank: [CallCount("barrier", "1", (0, 1), 1, 0)] for rank in range(2)}

    bundle = render([ok(0), ok(1)], calls=calls, world_size=4)

    assert bundle["text/plain"] == "1 × barrier · group of ranks 0, 1"


def test_the_view_imports_nothing_but_the_standard_library_and_the_wire() -> None:
    code = (
        "import sys; import nbdist.view\n"
        "print(sorted({m.split('.')[0] for m in sys.modules} - set(sys.stdlib_module_names)))\n"
        "print(sorted(m for m in sys.modules if m.startswith('nbdist.') and 'view' not in m))"
    )

    done = subprocess.run(
        [sys.executable, "-S", "-c", code], capture_output=True, text=True, check=True
    )

    assert done.stdout == "['__main__', 'nbdist']\n['nbdist.sizes', 'nbdist.wire']\n"
