"""The report of a small federation written by hand: its tables, and a page that loads nothing else."""

from __future__ import annotations

import csv
import hashlib
import html as entities
import io
import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import matplotlib
import numpy as np
import pytest

from perfit.methods import METHODS
from perfit.protocol import Base, Blob, ClientStatus, Limited, Perplexity, RoundSummary, UpdateRecord
from perfit.space import LoraSpace
from perfit.spec import FederationSpec
from perfit_report import RoundTimes, client_metrics, last_records, render_report, scalar_metrics
from perfit_report.data import clients_csv, report_json, rounds_csv
from perfit_report.style import COLOURS, as_svg, bins, hover, panel, short, spread

# One module from 6 to 4 features: 10 positions a rank, 40 in the space of rank 4.
MODULE = "base_model.model.model.layers.0.self_attn.q_proj"
SPACE = LoraSpace.from_shapes({f"{MODULE}.lora_A.weight": (4, 6), f"{MODULE}.lora_B.weight": (4, 4)})


def make_spec(clients: dict[str, int], **changes) -> FederationSpec:
    entries = [{"id": name, "data": f"{name}.jsonl", "rank": rank} for name, rank in clients.items()]
    settings = {"name": "desks", "model": "org/model", "lora": {"rank": 2}, "clients": entries}
    return FederationSpec.model_validate(settings | changes)


SPEC = make_spec({"early": 2, "late": 1, "absent": 2, "unasked": 1})


def trained(client: str, rank: int, perplexities: tuple[float, float, float], **changes) -> UpdateRecord:
    values = {
        "client": client,
        "tier": "default",
        "rank": rank,
        "round": 1,
        "budget": 10 * rank,
        "shared": 10 * rank,
        "samples": 60,
        "held_out_records": 15,
        "skipped_records": 2,
        "truncated_records": 3,
        "losses": (3.0, 2.0),
        "perplexity": Perplexity(**dict(zip(("round_0", "before", "after"), perplexities, strict=True))),
        "mask_digest": "0" * 64,
        "bytes_up": 100,
        "bytes_down": 50,
    }
    return UpdateRecord(**(values | changes))


def failed(client: str, status: str, reason: str, rank: int = 2) -> ClientStatus:
    return ClientStatus(client=client, tier="default", rank=rank, round=1, status=status, reason=reason)


def summary(round: int, *outcomes: UpdateRecord | ClientStatus, held: int = 30) -> RoundSummary:
    """A committed round; the outcomes take its number."""
    return RoundSummary(
        federation="desks",
        method="perfit",
        round=round,
        base=Base(round=round - 1, adapter=Blob(key=f"rounds/{round - 1}/global.safetensors", digest="0" * 64)),
        minimum_clients=1,
        positions=40,
        positions_held=held,
        positions_shared=held,
        clients=tuple(outcome.model_copy(update={"round": round}) for outcome in outcomes),
    )


def by_hand() -> list[RoundSummary]:
    """Early delivers in rounds 1 and 2 and fails in 3, late joins in round 2, absent never delivers."""
    return [
        summary(1, trained("early", 2, (20, 20, 16), bytes_up=120), failed("absent", "missing", "no record")),
        summary(2, trained("early", 2, (20, 15, 12)), trained("late", 1, (8, 8, 6), losses=(1.5,)), held=20),
        summary(
            3,
            failed("early", "failed", "out of <b>memory</b>"),
            trained("late", 1, (8, 7, 10), bytes_up=30, losses=(1.0, 0.5)),
            failed("absent", "refused", "a value is not finite"),
        ),
    ]


def first_positions(budget: int) -> np.ndarray:
    return np.arange(SPACE.size) < budget


def page(spec: FederationSpec = SPEC, summaries: list[RoundSummary] | None = None, masks: dict | None = None) -> str:
    summaries = by_hand() if summaries is None else summaries
    masks = {"early": first_positions(20), "late": ~first_positions(30)} if masks is None else masks
    return render_report(spec, summaries, SPACE, masks)


def section(html: str, heading: str) -> str:
    return re.split(r"<h[12]>", html.split(f"<h2>{heading}</h2>")[1])[0]


def rows(html: str) -> list[list[str]]:
    """The cells of each row of a table's body, without tags."""
    cells = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.S) for row in re.findall(r"<tr[^>]*>(.*?)</tr>", html, re.S)]
    return [[" ".join(re.sub(r"<[^>]+>", " ", cell).split()) for cell in row] for row in cells if row]


def text(html: str) -> str:
    """The text of the page, without tags and figures."""
    return " ".join(re.sub(r"<[^>]+>", " ", re.sub(r"<(svg|style).*?</\1>", "", html, flags=re.S)).split())


def test_last_records():
    records = last_records(by_hand())
    assert {client: (record.round, record.perplexity.after) for client, record in records.items()} == {
        "early": (2, 12),
        "late": (3, 10),
    }
    assert last_records([]) == {}


def test_scalar_metrics_are_means_over_the_clients_that_delivered():
    assert scalar_metrics(by_hand()[1]) == {
        "round": 2,
        "clients_delivered": 2,
        "clients_participating": 2,
        "perplexity_round_0_mean": (20 + 8) / 2,
        "perplexity_before_mean": (15 + 8) / 2,
        "perplexity_after_mean": (12 + 6) / 2,
        "loss_last_mean": (2.0 + 1.5) / 2,
        "bytes_up": 200,
        "bytes_down": 100,
        "positions_held_fraction": 20 / 40,
        "positions_shared_fraction": 20 / 40,
    }
    assert all(type(value) is float for value in scalar_metrics(by_hand()[1]).values())


def test_scalar_metrics_where_nobody_delivered():
    assert scalar_metrics(summary(1, failed("absent", "missing", "no record"), held=0)) == {
        "round": 1,
        "clients_delivered": 0,
        "clients_participating": 1,
        "bytes_up": 0,
        "bytes_down": 0,
        "positions_held_fraction": 0,
        "positions_shared_fraction": 0,
    }


def test_a_client_is_described_by_the_last_round_that_it_delivered():
    early, reason, late, *_ = rows(section(page(), "Clients"))
    assert early[:4] == ["early default", "failed numbers of round 2", "2", "20"]
    assert early[4:8] == ["20.00", "15.00", "12.00", "\u221240.0 %"]
    assert early[8:] == ["60", "15", "2", "3", "220 B", "100 B"]
    assert reason == ["", "out of &lt;b&gt;memory&lt;/b&gt;"]
    assert late[:8] == ["late default", "delivered", "1", "10", "8.00", "7.00", "10.00", "+25.0 %"]


def test_the_weights_that_clients_chose_are_beside_the_perplexities_that_they_gave():
    spec = make_spec({"ann": 1, "bob": 1, "new": 1}, method={"name": "perfit-adaptive"})
    chosen = {"ann": (0.25, 0.0), "bob": (1.0, 0.5), "new": (None, None)}
    shown = summary(1, *(trained(c, 1, (20, 15, 12), own_weight=o, tuned_weight=t) for c, (o, t) in chosen.items()))
    metrics = scalar_metrics(shown)
    assert (metrics["own_weight_mean"], metrics["tuned_weight_mean"]) == ((0.25 + 1) / 2, (0 + 0.5) / 2)
    cells = [row[5:7] for row in rows(section(render_report(spec, [shown], SPACE, {}), "Clients"))]
    assert cells == [
        ["15.00 own 25 %", "12.00 tuned 0 %"],
        ["15.00 own 100 %", "12.00 tuned 50 %"],
        ["15.00", "12.00"],
    ]


def test_clients_that_never_delivered_have_no_numbers():
    *_, absent, reason, unasked = rows(section(page(), "Clients"))
    assert absent == ["absent default", "refused never delivered", "2", "20"] + ["\u2013"] * 10
    assert reason == ["", "a value is not finite"]
    assert unasked == ["unasked default", "not sampled never delivered", "1", "10"] + ["\u2013"] * 10


def test_headline():
    tiles = " ".join(re.sub(r"<[^>]+>", " ", page().split('class="tiles"')[1].split("<details>")[0]).split())
    assert "3 of 3 rounds" in tiles
    assert "1 of 3 clients delivered in round 3" in tiles
    assert "8.00 → 7.00 → 10.00" in tiles
    assert "1 of 2 clients below their round 0" in tiles


def test_bytes_by_round_against_dense_float32():
    # Dense: 4 bytes for each of 20 parameters of early and 10 of late.
    assert rows(section(page(), "Bytes")) == [
        ["1", "1", "80 B", "120 B", "1.50", "50 B", "0.62"],
        ["2", "2", "120 B", "200 B", "1.67", "100 B", "0.83"],
        ["3", "1", "40 B", "30 B", "0.75", "50 B", "1.25"],
        ["all", "4", "240 B", "350 B", "1.46", "200 B", "0.83"],
    ]


def test_failures_of_a_round_are_grouped_by_reason():
    records = [failed(name, "missing", "no record") for name in ("early", "absent")]
    summaries = [*by_hand(), summary(4, *records, trained("late", 1, (8, 7, 6)))]
    assert rows(section(page(summaries=summaries), "Failures by round")) == [
        ["4", "missing", "2 of 3", "early , absent", "no record"],
        ["3", "failed", "1 of 3", "early", "out of &lt;b&gt;memory&lt;/b&gt;"],
        ["3", "refused", "1 of 3", "absent", "a value is not finite"],
        ["1", "missing", "1 of 2", "absent", "no record"],
    ]


def test_no_section_of_failures_without_any():
    assert "Failures" not in page(summaries=[by_hand()[1]])


def test_updates_that_counted_for_less_are_listed_with_the_limits():
    summaries = by_hand()
    limited = (
        Limited(client="late", samples=900, weight=12, factors={}),
        Limited(client="early", samples=8, weight=8, factors={"values": 0.25, "control": 0.5}),
    )
    summaries[1] = summaries[1].model_copy(update={"limited": limited})
    limited = section(page(summaries=summaries), "Limited updates")
    assert rows(limited) == [
        ["2", "late", "900", "12", "\u2013"],
        ["2", "early", "8", "8", "values: 25 %, control: 50 %"],
    ]
    assert "no client has more than 50 %" in text(limited)
    assert "no change exceeds 3 times the median" in text(limited)


def test_how_far_rounds_moved_names_the_furthest_update():
    summaries = by_hand()
    changes = [{"early": 0.25, "late": 0.5}, {"early": 0.25, "late": 1.0, "absent": 0.5}]
    for number, (change, furthest) in enumerate(zip((0.125, 0.5), changes, strict=True)):
        summaries[number] = summaries[number].model_copy(update={"change": change, "changes": furthest})
    summaries[2] = summaries[2].model_copy(update={"rule": "trimmed_mean", "positions_by_mean": 1234})
    moved = section(page(summaries=summaries), "How far the values moved")
    assert rows(moved) == [
        ["2", "0.5", "4.00 times", "late", "1", "2.00 times"],
        ["1", "0.125", "\u2013", "late", "0.5", "1.33 times"],
    ]
    assert "each position took the trimmed mean of its holders; 1,234 with fewer than three took their mean" in text(
        moved
    )


def test_no_section_of_moves_where_nothing_is_shared():
    assert "How far the values moved" not in page()


def test_no_section_of_limits_where_none_was_met():
    assert "Limited updates" not in page()


def test_overlap_beside_chance():
    masks = {"early": first_positions(20), "late": ~first_positions(15) & first_positions(25)}
    # 5 shared of 25; of halves and quarters at random 1/8 of 5/8.
    text = section(page(masks=masks), "Mask overlap between clients")
    assert "overlap by 0.20 on average" in text
    assert "these overlap by 0.20" in text
    assert "early and late, 0.20 against 0.20" in text
    assert "ranks 1 and 2" in text
    assert "The masks of 2 of 4 clients are known here." in text


def test_figures_name_the_clients():
    figures = re.findall(r"<svg.*?</svg>", page(), re.S)
    assert len(figures) == 5
    for figure in figures[:4]:
        assert ">early</text>" in figure
        assert ">late</text>" in figure
    assert not any(">absent</text>" in figure for figure in figures)


def test_methods_without_search_have_no_figures_of_masks():
    html = page(make_spec({"early": 2, "late": 1}, method={"name": "fedit"}))
    assert "With FedIT, clients do not search" in section(html, "Architectures")
    assert "Density by layer" not in html
    assert "Mask overlap" not in html
    assert "space of rank" not in html
    assert len(re.findall("<svg", html)) == 3


def about(html: str) -> str:
    return " ".join(re.search(r'class="about">(.*?)</p>', html, re.S)[1].split())


def test_the_method_is_called_by_its_title_and_paper():
    assert about(page()) == (
        "PerFIT (arXiv 2402.16919) · org/model · seed 0 · LoRA rank 2, searched in a space of rank 4 on 1 module"
    )
    local = make_spec({"early": 2}, method={"name": "local"})
    assert about(page(local)) == "local tuning (baseline) · org/model · seed 0 · LoRA rank 2 on 1 module"


def test_a_method_from_elsewhere_is_called_by_its_own_title(monkeypatch):
    made_up = replace(METHODS["fedit"], title="Made <up> LoRA", paper="arXiv 0000.00000")
    monkeypatch.setattr("perfit.methods.fedit.METHOD", made_up)
    html = page(make_spec({"early": 2, "late": 1}, method={"name": "fedit"}))
    assert about(html) == "Made &lt;up&gt; LoRA (arXiv 0000.00000) · org/model · seed 0 · LoRA rank 2 on 1 module"
    assert "<title>desks · Made &lt;up&gt; LoRA report</title>" in html
    assert "With Made &lt;up&gt; LoRA, clients do not search" in html
    assert "FedIT" not in html


@pytest.mark.parametrize("name", METHODS)
def test_a_report_mentions_no_other_method(name):
    html = page(make_spec({"early": 2, "late": 1}, method={"name": name}))
    own = METHODS[name]
    assert own.title in html
    words = text(html).replace(own.title, "").replace(own.paper, "").lower()
    for known in ("perfit-kubeflow", "perfit report", own.name):  # a package, a command, its setting
        words = re.sub(rf"(?<![\w-]){re.escape(known)}(?![\w-])", "", words)
    others = [method for method in METHODS.values() if method is not own]
    assert not [m.name for m in others if any(word.lower() in words for word in (m.name, m.title, m.paper))]


def budgets(html: str) -> dict[str, str]:
    """The budget of each client in the table, with what is written below it."""
    return {row[0].split()[0]: row[3] for row in rows(section(html, "Clients")) if len(row) == 14}


def width(row: str) -> int:
    """How many columns a row of a table spans."""
    return sum(int((re.findall(r'colspan="(\d+)"', cell) or [1])[0]) for cell in re.findall(r"<t[dh][^>]*>", row))


def test_clients_that_train_and_share_all_that_they_hold_have_one_number():
    html = page()
    assert budgets(html) == {"early": "20", "late": "10", "absent": "20", "unasked": "10"}
    assert "it trains and exchanges exactly that many values." in text(html)
    assert "personal: nobody else" not in html
    assert {width(row) for row in re.findall("<tr.*?</tr>", section(html, "Clients"), re.S)} == {14}


# Of early's 20 parameters A has 2 * 6 and B 4 * 2.
@pytest.mark.parametrize(
    ("method", "budget", "shared"),
    [("fedsa-lora", 20, 12), ("ffa-lora", 8, 8), ("local", 20, 0)],
    ids=["B is personal", "A is frozen", "all is personal"],
)
def test_personal_and_frozen_parts(method, budget, shared):
    spec = make_spec({"early": 2, "absent": 1}, method={"name": method})
    held = SPACE.plain_mask(2)
    roles = spec.roles(SPACE, held)
    assert (np.count_nonzero(roles.trained), np.count_nonzero(roles.shared)) == (budget, shared)

    record = trained("early", 2, (20, 15, 12), budget=budget, shared=shared)
    html = page(spec, [summary(1, record, failed("absent", "missing", "no record", rank=1))], {"early": held})
    assert budgets(html) == {"early": f"20 trained {budget} exchanged {shared}", "absent": "10"}
    assert "it holds exactly that many values." in text(html)
    assert "did not exchange in the round stayed with it: personal" in html
    # Dense LoRA is what the rank would give, whatever the method trains.
    assert rows(section(html, "Bytes"))[0][2] == "80 B"


@pytest.mark.parametrize(("shared", "meaning"), [(20, "the effect of aggregation"), (0, "only a guide for the eye")])
def test_what_lies_between_two_tunings_depends_on_what_is_shared(shared, meaning):
    summaries = [summary(n, trained("early", 2, (20, 15, 12), shared=shared)) for n in (1, 2)]
    note = text(section(page(summaries=summaries), "Perplexity by round"))
    assert f"the dotted line to the next tuning is {meaning}." in note


@pytest.mark.parametrize("summaries", [[], [summary(1, failed("early", "missing", "no record"), held=0)]])
def test_a_federation_in_which_nobody_has_delivered(summaries):
    html = page(summaries=summaries, masks={})
    assert "<svg" not in html
    assert rows(section(html, "Clients"))[0][0] == "early default"


def test_text_of_clients_is_escaped_in_tables_and_figures():
    evil = "<script>alert('x')</script>"
    summaries = [summary(1, trained(evil, 1, (8, 7, 6)), failed("early", "failed", evil))]
    html = page(summaries=summaries, masks={evil: first_positions(10), "early": first_positions(20)})
    assert "<script" not in html
    assert "&lt;script&gt;" in html


def test_a_long_reason_is_cut():
    html = page(summaries=[summary(1, failed("early", "failed", "x" * 2000))])
    assert "x" * 300 + "…" in html
    assert "x" * 301 not in html


def test_the_page_fetches_nothing():
    html = page()
    assert "http:" not in html
    assert "https:" not in html
    assert "<script" not in html
    references = re.findall(r"""(?:href|src)=["']([^"']*)|url\(([^)]*)\)""", html)
    assert references
    assert all("".join(reference).startswith(("#", "data:image/png")) for reference in references)


def test_the_same_bytes_in_every_process_without_torch_or_pyplot():
    code = (
        "import hashlib, runpy, sys; page = runpy.run_path(sys.argv[1])['page'];"
        "print(hashlib.sha256(page().encode()).hexdigest(), *({'torch', 'matplotlib.pyplot'} & set(sys.modules)))"
    )
    digest = hashlib.sha256(page().encode()).hexdigest()
    environment = os.environ | {"PYTHONHASHSEED": "7"}
    process = subprocess.run(
        [sys.executable, "-c", code, __file__], env=environment, capture_output=True, text=True, check=True
    )
    assert process.stdout.split() == [digest]


def test_importing_the_package_loads_no_library_for_figures_or_models():
    code = "import sys, perfit_report; print(*{'torch', 'transformers', 'matplotlib', 'jinja2'} & set(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_style_of_the_user_changes_nothing_and_is_left_as_it_was():
    plain = page()
    with matplotlib.rc_context({"font.size": 30, "axes.facecolor": "red", "svg.fonttype": "path"}):
        assert page() == plain
        assert matplotlib.rcParams["font.size"] == 30


def test_a_thousand_clients_stay_a_page():
    names = [f"client-{i:04d}" for i in range(1000)]
    generator = np.random.default_rng(0)
    masks = {name: generator.permutation(SPACE.size) < 20 for name in names}
    summaries = [summary(n, *(trained(name, 2, (20, 20 - n, 19 - n)) for name in names)) for n in (1, 2)]
    html = page(make_spec(dict.fromkeys(names, 2)), summaries, masks)
    assert len(html) < 2_000_000
    assert "All 1,000 clients" in html
    assert "Drawn for 200 clients, evenly spaced among the 1,000" in html
    assert ">median client</text>" in html


def test_heat_maps_lose_their_numbers_and_then_become_histograms():
    def numbers_in_cells(clients: int) -> int:
        names = [f"client-{i}" for i in range(clients)]
        masks = {name: np.roll(first_positions(20), i) for i, name in enumerate(names)}
        html = section(page(make_spec(dict.fromkeys(names, 2)), [], masks), "Mask overlap between clients")
        assert ("pairs of clients" in html) == (clients > 100)
        return len(re.findall(r">\.\d\d</text>|>1\.00</text>", html))

    assert numbers_in_cells(12) == 12 * 11
    assert numbers_in_cells(31) == 0
    assert numbers_in_cells(101) == 0


def test_labels_are_spread_no_further_than_needed():
    assert spread([0, 1, 10], 4) == [-1.5, 2.5, 10]
    assert spread([10, 1, 0], 4) == [10, 2.5, -1.5]
    assert spread([5, 5, 5], 2) == [3, 5, 7]
    assert spread([], 4) == []


def test_bins_average_what_cannot_be_told_apart():
    table = np.array([[1.0, 3.0, 5.0], [np.nan, 4.0, np.nan]])
    places, means = bins(table, most=2)
    np.testing.assert_array_equal(places, [1.5, 3.5])
    np.testing.assert_array_equal(means, [[2.0, 5.0], [4.0, np.nan]])
    np.testing.assert_array_equal(bins(table)[0], [1, 2, 3])


def test_long_names_keep_both_ends():
    assert short("hospital") == "hospital"
    assert short("hospital-of-the-north-ward-07") == "hospital-of-…ward-07"


TIMES = [RoundTimes(1_790_000_000, 1_790_000_042), RoundTimes(1_790_000_100, 1_790_003_761), RoundTimes(1.8e9, 1.7e9)]


def test_the_page_says_settings_libraries_and_seed():
    html = page(make_spec({"early": 2, "late": 1}, training={"seed": 7, "learning_rate": 0.25}))
    assert "· seed 7 ·" in text(html)
    settings = dict(rows(html.split("Settings and libraries")[1].split("</table>")[0]))
    assert (settings["training.learning_rate"], settings["lora.target_modules"]) == ("0.25", "q_proj, v_proj")
    assert (settings["clients"], settings["training.decay_rounds"]) == ("2", "\u2013")
    assert f"numpy {np.__version__}" in text(html)


def test_durations_are_those_of_the_store():
    html = render_report(SPEC, by_hand(), SPACE, {}, TIMES)
    assert rows(section(html, "Durations")) == [["3", "0 s"], ["2", "1 h 1 min"], ["1", "42 s"]]
    assert "no clock in it" in section(page(), "Durations")


def test_figures_say_their_values_under_the_pointer():
    titles = [entities.unescape(title) for title in re.findall(r"<title>([^<]*)</title>", page())]
    assert "early\nround 2, after tuning: 12.00" in titles
    assert "late\nround 3, before tuning: 7.00" in titles
    assert not any(title.startswith("early\nround 3") for title in titles)  # it failed
    assert "round 1, up: 120 bytes\ndense LoRA: 80 bytes" in titles
    assert "early and late: 0.000\nby chance: 0.200" in titles


def test_a_text_under_the_pointer_is_text():
    text = """<b> "a" 'b' & 100 %\n}"""

    @as_svg
    def draw():
        figure, axes = panel(100)
        hover(axes, [0, 1, 2], [0, np.nan, 1], [text, "unknown", "last"], COLOURS[0])
        return figure

    assert [entities.unescape(title) for title in re.findall(r"<title>([^<]*)</title>", draw())] == [text, "last"]


def test_a_client_s_metrics():
    record = trained("early", 2, (20, 18, 16), own_weight=0.25)
    assert client_metrics(record) == {
        "perplexity_round_0": 20,
        "perplexity_before": 18,
        "perplexity_after": 16,
        "loss_mean": 2.5,
        "loss_last": 2,
        "bytes_up": 100,
        "bytes_down": 50,
        "samples": 60,
        "held_out_records": 15,
        "skipped_records": 2,
        "truncated_records": 3,
        "budget": 20,
        "shared": 20,
        "own_weight": 0.25,
    }
    assert all(type(value) is float for value in client_metrics(record).values())


def test_csv_and_json():
    summaries = [*by_hand()[:2], summary(3, failed("early", "failed", '=HYPERLINK("http://x")'))]
    of_rounds = list(csv.DictReader(io.StringIO(rounds_csv(summaries, TIMES))))
    assert [row["perplexity_after_mean"] for row in of_rounds] == ["16.0", "9.0", ""]
    assert [row["seconds"] for row in of_rounds] == ["42", "3661", "0.0"]
    assert of_rounds[0]["planned"] == "2026-09-21T14:13:20+00:00"
    of_clients = list(csv.DictReader(io.StringIO(clients_csv(summaries))))
    who = [(row["round"], row["client"], row["status"], row["perplexity_after"], row["reason"]) for row in of_clients]
    assert who == [
        ("1", "early", "trained", "16.0", ""),
        ("1", "absent", "missing", "", "no record"),
        ("2", "early", "trained", "12.0", ""),
        ("2", "late", "trained", "6.0", ""),
        ("3", "early", "failed", "", """'=HYPERLINK("http://x")"""),  # no spreadsheet runs it
    ]
    tree = json.loads(report_json(SPEC, summaries, TIMES))
    assert (tree["federation"], tree["settings"]["training.seed"]) == ("desks", 0)
    assert [of["metrics"]["bytes_up"] for of in tree["rounds"]] == [120, 200, 0]
    assert [of["seconds"] for of in tree["rounds"]] == [42, 3661, 0]
    assert tree["rounds"][1]["clients"][1]["losses"] == [1.5]
