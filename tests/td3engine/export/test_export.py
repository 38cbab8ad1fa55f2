"""Exports: top-k against the dense definition, draws against S, files through their readers."""

import csv
import json
from inspect import signature
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor
from typer.testing import CliRunner

from td3engine.cli import main as cli
from td3engine.cli.export import export as export_command
from td3engine.config import BackboneName
from td3engine.data.reading import read_log
from td3engine.data.split import split
from td3engine.errors import DivergedError, OutputExistsError, UnusableError
from td3engine.export import sequences as export
from td3engine.export import soft_targets
from td3engine.export.files import write_csv, write_inter
from td3engine.export.registry import ExportOptions, export_to
from td3engine.export.sequences import sample_sequences, train_guide
from td3engine.export.soft_targets import soft_top_k, write_soft
from td3engine.runtime.seeding import Purpose, generator
from td3engine.summary.bundle import Bundle, Manifest, load_bundle, save_bundle
from td3engine.summary.labelled import LabelledSummary
from td3engine.summary.tucker import TuckerSummary
from tests.td3engine.oracles import temporal_factors
from tests.td3engine.small import SMALL, paper_config, small_config

runner = CliRunner()
USERS, LENGTH, ITEMS, WIDTH = 3, 6, 40, 8
ITEM_IDS = [f"i{item}" for item in range(ITEMS)]
HOSTILE_IDS = ["a,b", 'say "x"', '"', "two\nlines", "return\rend", "both\r\nends", "tab\tbed", "'"]
HOSTILE_IDS += ["a;b|c", "#", "\\", "a\u2028b", "a\x0bb", "é漢🙂", " left", "right "]
HOSTILE_IDS += ["NA", "null", "=1+1", "-", "1", "01", "1.0"]


def summary(items: int = ITEMS, spread: float = 1.0, *, own_targets: bool = False) -> TuckerSummary:
    """Factors whose S is neither uniform nor a point."""
    draw = torch.Generator().manual_seed(5)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    return TuckerSummary(
        U=normal(USERS, 2),
        T=normal(LENGTH, 2),
        G=normal(2, 2, WIDTH) * spread,
        V=normal(items, WIDTH),
        Y=normal(LENGTH, 2) if own_targets else None,
    )


def dense(factors: TuckerSummary, temporal: Tensor) -> Tensor:
    """S by its definition, float64 (mu, zeta, n): sums over every index, no einsum of ours."""
    C = sum(
        factors.U.double()[:, a, None, None]
        * temporal.double()[None, :, b, None]
        * factors.G.double()[a, b]
        for a in range(factors.U.shape[1])
        for b in range(factors.T.shape[1])
    )
    assert isinstance(C, Tensor)
    return (C @ factors.V.double().T).softmax(-1)


def drawn_from(factors: TuckerSummary) -> Tensor:
    """What positions of item sequences are drawn from: what is to be predicted there."""
    _, predicted = temporal_factors(factors.T, factors.Y)
    return dense(factors, predicted)


def said_of(table: pa.Table) -> dict[str, float]:
    said: dict[str, float] = json.loads(table.schema.metadata[b"td3"])
    return said


@pytest.mark.parametrize("k", [1, 5, ITEMS, ITEMS + 7])
@pytest.mark.parametrize("own_targets", [False, True])
def test_the_top_k_are_those_of_the_dense_definition(k: int, own_targets: bool) -> None:
    factors = summary(own_targets=own_targets)
    table = soft_top_k(factors, ITEM_IDS, k)
    kinds = ["int32", "int32", "bool", "string", "float"]
    assert [str(kind) for kind in table.schema.types] == kinds
    parts = temporal_factors(factors.T, factors.Y)[: 1 + own_targets]
    S = [dense(factors, temporal).numpy() for temporal in parts]
    rows = iter(table.to_pylist())
    for user in range(USERS):
        for position in range(LENGTH):
            for target, part in enumerate(S):
                here = part[user, position]
                for item in sorted(range(ITEMS), key=lambda item: -here[item])[:k]:
                    row = next(rows)
                    assert (row["sequence"], row["position"]) == (user, position)
                    assert row["target"] == bool(target)
                    assert row["item_id"] == f"i{item}"
                    assert row["probability"] == pytest.approx(here[item], rel=1e-4)
    assert next(rows, None) is None
    held = np.sort(S, -1)[..., ::-1][..., :k].sum(-1)
    assert said_of(table) == {
        "format": "td3-soft-2",
        "own_targets": own_targets,
        "users": USERS,
        "length": LENGTH,
        "items": ITEMS,
        "k": min(k, ITEMS),
        "renormalised": False,
        "held_mean": pytest.approx(held.mean(), abs=1e-5),
        "held_least": pytest.approx(held.min(), abs=1e-5),
        "left_mean": pytest.approx(1 - held.mean(), abs=1e-5),
    }


def items_and_labels() -> LabelledSummary:
    draw = torch.Generator().manual_seed(6)
    items = torch.randint(ITEMS, (USERS, LENGTH), generator=draw)
    labels, V = (
        torch.randn(*shape, generator=draw)
        for shape in ((USERS, LENGTH - 1, WIDTH), (ITEMS, WIDTH))
    )
    return LabelledSummary(items, labels, V, sharpness=2.0)


def test_of_items_and_labels_the_top_k_are_queries_and_what_labels_score() -> None:
    factors = items_and_labels()
    table = soft_top_k(factors, ITEM_IDS, 5)
    assert said_of(table)["own_targets"]
    V = factors.V.double()
    centred = V - V.mean(0)
    # Queries of inputs: the direction of the item's row, all of one length.
    lengths = centred[factors.items].norm(dim=-1)
    norm = (np.log(ITEMS) + 2.0) / lengths.mean()
    read = centred[factors.items] / lengths[..., None] * norm
    asked = torch.cat([read[:, :1], factors.labels.double()], 1)
    S = [(C @ V.T).softmax(-1).numpy() for C in (read, asked)]
    rows = iter(table.to_pylist())
    for user in range(USERS):
        for position in range(LENGTH):
            for target, part in enumerate(S):
                here = part[user, position]
                for item in sorted(range(ITEMS), key=lambda item: -here[item])[:5]:
                    row = next(rows)
                    assert (row["sequence"], row["position"]) == (user, position)
                    assert row["target"] == bool(target)
                    assert row["item_id"] == f"i{item}"
                    assert row["probability"] == pytest.approx(here[item], rel=1e-4)
    assert next(rows, None) is None


def test_sequences_of_items_and_labels_are_drawn_from_what_labels_score() -> None:
    factors = items_and_labels()
    drawn = sample_sequences(factors, copies=2, temperature=1e-30, repeats=True)
    best = (factors.labels.double() @ factors.V.double().T).argmax(-1).repeat_interleave(2, 0)
    torch.testing.assert_close(drawn[:, 1:], best)
    guide = train_guide(factors, small_config())
    guided = sample_sequences(factors, copies=3, guide=guide)
    assert guided.shape == (3 * USERS, LENGTH)
    assert all(len(set(row)) == LENGTH for row in guided.tolist())


def test_renormalised_the_items_of_a_position_sum_to_one() -> None:
    plain, whole = (soft_top_k(summary(), ITEM_IDS, 5, renormalise=yes) for yes in (False, True))
    sums = whole.column("probability").to_numpy().reshape(-1, 5).sum(-1)
    np.testing.assert_allclose(sums, 1, rtol=1e-6)
    assert plain.column("item_id") == whole.column("item_id")
    assert said_of(whole)["held_mean"] == said_of(plain)["held_mean"] < 0.99
    assert said_of(whole)["renormalised"]


def test_equal_items_come_by_index() -> None:
    factors = summary()
    alike = TuckerSummary(factors.U, factors.T, factors.G, factors.V[:4].repeat(10, 1))
    table = soft_top_k(alike, ITEM_IDS, 13)
    for position in table.column("item_id").to_numpy().reshape(-1, 13):
        numbers = [int(name[1:]) for name in position]
        group = numbers[0] % 4
        # All ten copies of the best item by index, then the first three of the second best.
        assert numbers[:10] == list(range(group, ITEMS, 4))
        assert numbers[10:] == [number % 4 for number in numbers[10:11]] + [
            numbers[10] + 4, numbers[10] + 8
        ]  # fmt: skip


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    guide = train_guide(summary(), small_config())
    whole = soft_top_k(summary(), ITEM_IDS, 5), sample_sequences(summary(), copies=7, guide=guide)
    for module in (soft_targets, export):
        monkeypatch.setattr(module, "SCORES_AT_ONCE", ITEMS * 4)
    cut = soft_top_k(summary(), ITEM_IDS, 5), sample_sequences(summary(), copies=7, guide=guide)
    assert whole[0].column("item_id") == cut[0].column("item_id")
    np.testing.assert_allclose(whole[0].column("probability"), cut[0].column("probability"), 1e-6)
    torch.testing.assert_close(whole[1], cut[1])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_independent_draws_have_the_frequencies_of_the_summary(temperature: float) -> None:
    copies, factors = 4000, summary(own_targets=temperature == 1)
    drawn = sample_sequences(factors, copies=copies, temperature=temperature, repeats=True)
    P = drawn_from(factors) ** (1 / temperature)
    expected = copies * P / P.sum(-1, keepdim=True)
    counts = torch.nn.functional.one_hot(drawn.view(USERS, copies, LENGTH), ITEMS).sum(1).double()
    # Cells with few expected draws are taken together, as the test wants it.
    selected_per_row = expected < 5
    for user in range(USERS):
        for position in range(LENGTH):
            rare = selected_per_row[user, position]
            e, c = expected[user, position], counts[user, position]
            e = torch.cat([e[~rare], e[rare].sum(0, keepdim=True)])
            c = torch.cat([c[~rare], c[rare].sum(0, keepdim=True)])
            statistic = float(((c - e) ** 2 / e.clamp_min(1e-9)).sum())
            freedom = len(e) - 1
            # Wilson and Hilferty: the cube root of chi-square / freedom is nearly normal.
            spread = (2 / (9 * max(freedom, 1))) ** 0.5
            z = ((statistic / max(freedom, 1)) ** (1 / 3) - (1 - spread**2)) / spread
            assert z < 4


@pytest.mark.parametrize("own_targets", [False, True])
def test_towards_temperature_zero_it_is_the_argmax(own_targets: bool) -> None:
    factors = summary(own_targets=own_targets)
    drawn = sample_sequences(factors, copies=2, temperature=1e-30, repeats=True)
    torch.testing.assert_close(drawn, drawn_from(factors).argmax(-1).repeat_interleave(2, 0))


@pytest.mark.parametrize("guided", [False, True])
def test_no_item_comes_twice_unless_repeats_are_allowed(guided: bool) -> None:
    sharp = summary(items=7, spread=3.0)
    guide = train_guide(sharp, small_config()) if guided else None
    drawn = sample_sequences(sharp, copies=50, guide=guide)
    assert all(len(set(row)) == LENGTH for row in drawn.tolist())
    allowed = sample_sequences(sharp, copies=50, guide=guide, repeats=True)
    assert any(len(set(row)) < LENGTH for row in allowed.tolist())
    with pytest.raises(UnusableError, match="5 items cannot fill 6 positions"):
        sample_sequences(summary(items=5))


def test_every_item_once_where_there_are_as_many_as_positions() -> None:
    # The last position has one item of probability one and the others of exactly zero.
    drawn = sample_sequences(summary(items=LENGTH, spread=5.0), copies=30, temperature=0.01)
    assert drawn.sort(-1).values.equal(torch.arange(LENGTH).expand(USERS * 30, LENGTH))


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1 - 2**-53])
def test_an_impossible_item_is_never_drawn(uniform: float) -> None:
    P = torch.tensor([[0.0, 0.0, 0.3, 0.0, 0.7, 0.0]], dtype=torch.float64)
    drawn = export._draw(P, torch.tensor([uniform], dtype=torch.float64))
    assert drawn.tolist() == [2 if uniform == 0 else 4]


def test_same_seed_same_sequences() -> None:
    first, again, other = (
        sample_sequences(
            summary(), copies=3, guide=train_guide(summary(), small_config(), seed=seed), seed=seed
        )
        for seed in (1, 1, 2)
    )
    assert first.equal(again)
    assert not first.equal(other)
    assert first.shape == (USERS * 3, LENGTH)
    assert first.dtype == torch.int64


@pytest.mark.parametrize("name", ["sasrec", "gru4rec", "narm", "bert4rec"])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_guided_sampling_is_the_slow_loop(name: BackboneName, weight: float) -> None:
    config = small_config(backbone={"name": name})
    factors = summary(items=12, own_targets=weight == 0.3)
    guide = train_guide(factors, config, weight=weight, seed=4)
    copies, temperature, seed = 2, 0.6, 9
    drawn = sample_sequences(
        factors, copies=copies, temperature=temperature, guide=guide, seed=seed
    )
    uniforms = torch.rand(
        USERS * copies,
        LENGTH,
        generator=generator(seed, Purpose.EXPORT),
        dtype=torch.float64,
    )
    logS = drawn_from(factors).log()
    for row in range(USERS * copies):
        prefix: list[int] = []
        for t in range(LENGTH):
            z = logS[row // copies, t]
            if prefix:
                table = guide.model.table[:, : config.backbone.hidden]
                bias = guide.model.table[:, config.backbone.hidden :].sum(-1)
                events = table[torch.tensor([prefix])]
                h = guide.model.backbone.last(
                    guide.model.parameters, events, torch.tensor([len(prefix)])
                )[0]
                scores = torch.stack([(h * item).sum() for item in table]).add(bias).double()
                z = (1 - weight) * z + weight * scores
            p = [
                0.0 if i in prefix else float(((z[i] - z.max()) / temperature).exp())
                for i in range(12)
            ]
            total, passed, item = sum(p), 0.0, -1
            while passed <= float(uniforms[row, t]) * total:
                item += 1
                passed += p[item]
            prefix.append(item)
        assert drawn[row].tolist() == prefix


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: soft_top_k(summary(), ITEM_IDS, 0), "positive, not 0"),
        (lambda: sample_sequences(summary(), copies=0), "positive"),
        (lambda: sample_sequences(summary(), temperature=0.0), "positive"),
        (lambda: sample_sequences(summary(), temperature=float("nan")), "positive"),
        (lambda: sample_sequences(summary(), temperature=float("inf")), "positive"),
        (lambda: train_guide(summary(), small_config(), weight=1.5), "from 0 to 1, not 1.5"),
    ],
)
def test_settings_that_cannot_work_are_refused(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(UnusableError, match=message):
        call()


def test_a_guide_that_diverges_is_said_so() -> None:
    with pytest.raises(DivergedError, match="a learner diverged"):
        train_guide(summary(), small_config(learner={"lr": 1e30}))


def test_csv_with_hostile_ids_is_read_back_by_td3_and_by_python(tmp_path: Path) -> None:
    n = len(HOSTILE_IDS)
    sequences = torch.stack(
        [torch.randperm(n, generator=torch.Generator().manual_seed(s)) for s in range(6)]
    )
    out = tmp_path / "out.csv"
    write_csv(sequences, HOSTILE_IDS, 3, out)
    log = read_log(out)
    assert log.user_ids == ["s0-0", "s0-1", "s0-2", "s1-0", "s1-1", "s1-2"]
    read = [log.item_ids[code] for code in log.item_codes]
    assert read == [HOSTILE_IDS[item] for item in sequences.flatten().tolist()]
    assert log.times.tolist() == list(range(n)) * 6
    cut = split(log, min_user_interactions=5, min_item_interactions=5, iterative_core=False)
    assert (cut.n_users, cut.n_items) == (6, n)
    with out.open(newline="", encoding="utf-8") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["user_id", "item_id", "timestamp"]
    assert [row[1] for row in rows[1:]] == read


def test_inter_has_recboles_header_and_is_read_back(tmp_path: Path) -> None:
    out = tmp_path / "out.inter"
    write_inter(torch.tensor([[0, 2], [1, 0]]), ["a b", "c,d", "e'f"], 1, out)
    assert out.read_bytes() == (
        b"user_id:token\titem_id:token\ttimestamp:float\n"
        b"s0-0\ta b\t0\ns0-0\te'f\t1\ns1-0\tc,d\t0\ns1-0\ta b\t1\n"
    )
    log = read_log(out)
    assert log.item_ids == ["a b", "e'f", "c,d"]


@pytest.mark.parametrize("refused", ["a\tb", "a\nb", "a\rb", 'a"b', "NA", "nan", "a\x1fb"])
def test_inter_refuses_what_it_cannot_hold_by_its_first_id(tmp_path: Path, refused: str) -> None:
    with pytest.raises(UnusableError) as said:
        write_inter(torch.tensor([[0]]), ["fine", refused, "x\ty"], 1, tmp_path / "out.inter")
    assert repr(refused) in str(said.value)
    assert not list(tmp_path.iterdir())


def test_ids_are_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A guide takes a minute to train: an id that cannot be written must not wait for it."""

    def train(*_: object, **__: object) -> None:
        raise AssertionError("a guide is trained")

    monkeypatch.setattr("td3engine.export.files.train_guide", train)
    manifest = manifest_of(0.0)
    options = ExportOptions(
        top_k=1, renormalise=False, copies=1, temperature=1.0, guidance=1.0, repeats=None, seed=0
    )
    for kind, bad in (("inter", "nan"), ("csv", "a\0b")):
        bundle = Bundle(summary(), [*ITEM_IDS[:-1], bad], manifest)
        with pytest.raises(UnusableError, match="cannot hold the item id"):
            export_to(kind, bundle, tmp_path / "out", options, torch.device("cpu"))
    assert not list(tmp_path.iterdir())


def manifest_of(repeat_share: float) -> Manifest:
    return Manifest(
        config=small_config(),
        fingerprint="f" * 64,
        statistics={"repeat_share": repeat_share},
        validation={},
        results=[],
        numbers_stored={},
    )


@pytest.mark.parametrize(
    ("share", "asked", "twice"),
    [(0.0, None, False), (0.5, None, True), (0.5, False, False), (0.0, True, True)],
)
def test_items_come_twice_by_default_where_the_log_repeats_them(
    tmp_path: Path, share: float, asked: bool | None, twice: bool
) -> None:
    bundle = Bundle(summary(spread=9.0), ITEM_IDS, manifest_of(share))
    options = ExportOptions(
        top_k=1, renormalise=False, copies=9, temperature=0.5, guidance=None, repeats=asked, seed=0
    )
    out = tmp_path / "out.csv"
    line = export_to("csv", bundle, out, options, torch.device("cpu"))
    rows = [row.rsplit(",", 1)[0] for row in out.read_text().splitlines()[1:]]
    assert (len(set(rows)) < len(rows)) == twice
    assert ("an item may come twice" in line) == twice


def test_csv_refuses_a_nul(tmp_path: Path) -> None:
    with pytest.raises(UnusableError, match="x00"):
        write_csv(torch.tensor([[0]]), ["a\0b"], 1, tmp_path / "out.csv")
    assert not list(tmp_path.iterdir())


def test_no_half_file_stays_and_none_is_written_over(tmp_path: Path) -> None:
    out = tmp_path / "out.csv"
    with pytest.raises(IndexError):
        write_csv(torch.tensor([[0, 7]]), ["a"], 1, out)
    assert not list(tmp_path.iterdir())
    out.write_text("mine")
    with pytest.raises(OutputExistsError):
        write_csv(torch.tensor([[0]]), ["a"], 1, out)
    with pytest.raises(OutputExistsError):
        write_soft(soft_top_k(summary(), ITEM_IDS, 2), out)
    assert out.read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out.csv"]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undistilled summary of `SMALL`'s shape: what an export does hangs on no training."""
    folder = tmp_path_factory.mktemp("export") / "summary"
    config = paper_config()
    draw = torch.Generator().manual_seed(0)
    factors = TuckerSummary.initial(config.summary, torch.randn(30, 8, generator=draw), draw)
    manifest = Manifest(
        config=config,
        fingerprint="f" * 64,
        statistics={},
        validation={},
        results=[],
        numbers_stored={},
    )
    save_bundle(folder, factors, [f"i{item}" for item in range(29)] + ["odd\tone"], manifest)
    return folder


def invoke(bundle: Path, out: Path, *more: str) -> tuple[int, str]:
    done = runner.invoke(cli.app, ["export", str(bundle), "--out", str(out), *more])
    return done.exit_code, done.output


def test_the_command_writes_soft_targets(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "soft.parquet"
    code, said = invoke(bundle, out, "--format", "soft", "--top-k", "7")
    assert code == 0, said
    assert "7 of 30 items" in said
    whole: Bundle = load_bundle(bundle)
    assert pq.read_table(out).equals(soft_top_k(whole.factors, whole.item_ids, 7), True)


def test_the_command_writes_a_log_that_distils(bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "hard.csv"
    code, said = invoke(bundle, out, "--copies", "10", "--seed", "3")
    assert code == 0, said
    assert "40 sequences of 8 events" in said
    again = tmp_path / "again.csv"
    invoke(bundle, again, "--copies", "10", "--seed", "3")
    assert again.read_bytes() == out.read_bytes()
    plain = tmp_path / "plain.csv"
    invoke(bundle, plain, "--copies", "10", "--seed", "3", "--sampling", "independent")
    assert plain.read_bytes() != out.read_bytes()
    settings = [f"{part}.{key}={value}" for part, keys in SMALL.items() if isinstance(keys, dict)
                for key, value in keys.items()]  # fmt: skip
    arguments = [word for setting in settings for word in ("--set", setting)]
    done = runner.invoke(
        cli.app, ["distill", str(out), "--out", str(tmp_path / "second"), *arguments]
    )
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--format", "inter"], 65, "odd\\tone"),
        (["--temperature", "0"], 65, "positive"),
        (["--guidance", "2"], 2, "guidance"),
        (["--format", "xml"], 2, "xml"),
    ],
)
def test_what_cannot_be_exported_is_one_line(
    bundle: Path, tmp_path: Path, arguments: list[str], code: int, said: str
) -> None:
    done = invoke(bundle, tmp_path / "out", *arguments)
    assert done[0] == code
    assert said in done[1]
    assert "Traceback" not in done[1]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", ["soft", "csv", "inter"])
def test_a_file_is_not_written_over_and_a_missing_summary_is_named(
    bundle: Path, tmp_path: Path, kind: str
) -> None:
    out = tmp_path / "out"
    code, said = invoke(tmp_path / "absent", out, "--format", kind)
    assert code == 65
    assert "absent" in said
    code, said = invoke(bundle, tmp_path / "nowhere" / "out", "--format", kind)
    assert code == 65
    assert "no folder" in said
    out.write_text("mine")
    code, said = invoke(bundle, out, "--format", kind)
    assert code == 65
    assert "exists already" in said
    assert out.read_text() == "mine"


def test_the_command_has_the_librarys_defaults() -> None:
    # The command imports no torch before it computes, so it cannot name the library's constants.
    given = {name: one.default for name, one in signature(export_command).parameters.items()}
    assert given["top_k"] == soft_targets.TOP_K
    assert given["copies"] == export.COPIES
    assert given["temperature"] == export.TEMPERATURE
    assert given["guidance"] == export.GUIDANCE
