"""Reading records and checking them, on small files of every kind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from perfit.errors import PerfitError
from perfit.records import BadRecord, Record, check_records, read_records, to_messages

GOOD = '{"instruction": "Two plus three?", "context": "", "response": "Five.", "category": "math"}'
NO_RESPONSE = '{"instruction": "Two plus three?"}'


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


def test_lines_keep_their_numbers(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"a": 1}', "", '{"b": "é\u2028ü"}', "", "")
    assert read_records(source) == [Record(1, {"a": 1}), Record(3, {"b": "é\u2028ü"})]


def test_byte_order_mark_and_windows_line_ends(tmp_path):
    path = tmp_path / "a.json"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n{"a": 2}\r\n')
    assert read_records(str(path)) == [Record(1, {"a": 1}), Record(2, {"a": 2})]


def test_a_path_with_glob_characters_is_one_file(tmp_path):
    (tmp_path / "b1.jsonl").write_text('{"other": "file"}')
    assert read_records(write(tmp_path / "b[1]*.jsonl", '{"a": 1}')) == [Record(1, {"a": 1})]


def test_lines_that_are_no_record_are_named(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"a": 1}\n{"a": \n[1]\n{"a": "\xe9"}\n{"a": ' + b"9" * 5000 + b"}\n")
    assert [(record.line, record.problem) for record in read_records(str(path))] == [
        (1, None),
        (2, "not valid JSON (column 7: Expecting value)"),
        (3, "not a JSON object"),
        (4, "not valid JSON (column 8: not UTF-8)"),
        (5, "not valid JSON (a number is too long, or values are nested too deeply)"),
    ]


def test_parquet_rows(tmp_path):
    chat = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
    path = tmp_path / "a.parquet"
    table = pa.table({"messages": [chat, None], "instruction": [None, "Greet"], "output": [None, "Hello"]})
    pq.write_table(table, path)

    first, second = read_records(str(path))

    assert to_messages(first.fields) == chat
    assert (second.line, to_messages(second.fields)[0]["content"]) == (2, "Greet")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("empty.jsonl", b"", "contains no records"),
        ("blank.jsonl", b"\n \n", "contains no records"),
        ("table.csv", b"a,b\n", "unknown file type '.csv'"),
        ("bad.parquet", b"not parquet", "cannot be read: Parquet magic bytes not found"),
        ("array.json", b'[{"a": 1}]', "is a JSON array, not one JSON object a line"),
    ],
)
def test_files_of_no_use(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(PerfitError) as raised:
        read_records(str(tmp_path / name))
    assert f"{tmp_path / name}: {problem}" in raised.value.problem


def test_a_parquet_file_without_rows(tmp_path):
    pq.write_table(pa.table({"a": pa.array([], pa.string())}), tmp_path / "a.parquet")
    with pytest.raises(PerfitError, match="contains no records"):
        read_records(str(tmp_path / "a.parquet"))


@pytest.mark.parametrize(
    ("source", "problem"),
    [
        ("nowhere/a.jsonl", "no such file"),
        ("nowhere.csv", "neither a file nor a hub data set"),
        ("gs://bucket/a.txt", "neither a file nor a hub data set"),
        ("s3://bucket/a.jsonl", "is not a local file"),
        (".", "is a directory"),
    ],
)
def test_sources_that_are_no_file(source, problem):
    with pytest.raises(PerfitError) as raised:
        read_records(source)
    assert raised.value.problem == f"{source}: {problem}"


def python(code: str, home: Path) -> str:
    environment = os.environ | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_a_hub_data_set_that_cannot_be_reached(tmp_path):
    code = """
from perfit.records import read_records
from perfit.errors import PerfitError
try:
    read_records("nobody/nothing:test")
except PerfitError as error:
    print(error.problem, error.fix, sep="|")
"""
    problem, fix = python(code, tmp_path / "hub").split("|")
    assert problem.startswith("nobody/nothing:test: cannot be read: ")
    assert "HF_TOKEN" in fix


def test_reading_leaves_nothing_behind(tmp_path):
    source = write(tmp_path / "a.jsonl", GOOD)
    code = f"from perfit.records import read_records; print(len(read_records({source!r})))"
    assert python(code, tmp_path / "hub") == "1"
    assert not (tmp_path / "hub").exists()


def test_imports_are_light(tmp_path):
    heavy = "{'torch', 'datasets', 'transformers'}"
    code = f"import sys, perfit.partition, perfit.examples; print({heavy} & set(sys.modules))"
    assert python(code, tmp_path) == "set()"


def turn(role: str, content: object) -> dict[str, object]:
    return {"role": role, "content": content}


@pytest.mark.parametrize(
    ("fields", "question"),
    [
        ({"instruction": "Add.", "input": "2 and 3", "output": "5"}, "Add.\n\n2 and 3"),
        ({"instruction": "Add 2 and 3.", "input": "", "output": "5"}, "Add 2 and 3."),
        ({"instruction": "Add.", "context": "2, 3", "response": "5", "category": "math"}, "Add.\n\n2, 3"),
        ({"instruction": "Add 2, 3.", "context": None, "response": "5", "messages": None}, "Add 2, 3."),
        ({"messages": [turn("user", "2 + 3?"), turn("assistant", "5")]}, "2 + 3?"),
    ],
)
def test_schemas(fields, question):
    assert to_messages(fields) == [turn("user", question), turn("assistant", "5")]


def test_a_chat_keeps_its_turns_and_drops_other_keys():
    turns = [turn("system", "Be brief."), turn("user", "Hi"), turn("assistant", "Ho"), turn("user", "?")]
    fields = {"messages": [*turns, {**turn("assistant", "!"), "name": "a"}]}
    assert to_messages(fields) == [*turns, turn("assistant", "!")]


USER, ASSISTANT = turn("user", "Hi"), turn("assistant", "Ho")


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"instruction": "Add."}, "no response"),
        ({"instruction": "Add.", "input": "", "output": None}, "no response"),
        ({"instruction": "Add.", "response": " \n"}, "empty response"),
        ({"instruction": "Add.", "response": 5}, "response is not a string"),
        ({"instruction": "Add.", "response": "5\ud800"}, "response holds half of a surrogate pair"),
        ({"instruction": "Add.", "response": "5", "output": "6"}, "both response and output"),
        ({"instruction": "", "response": "5"}, "empty instruction"),
        ({"instruction": "Add.", "input": ["2"], "output": "5"}, "input is not a string"),
        ({"question": "2 + 3?", "answer": "5"}, "unknown schema (keys: question, answer)"),
        ({}, "unknown schema (keys: none)"),
        ({"messages": "Hi"}, "messages is not a list of objects with role and content"),
        ({"messages": []}, "no response"),
        ({"messages": [USER]}, "no response"),
        ({"messages": [USER, ASSISTANT, USER]}, "chat does not end with the assistant"),
        ({"messages": [ASSISTANT]}, "chat does not begin with the user"),
        ({"messages": [USER, turn("system", "Be brief."), ASSISTANT]}, "system message is not the first"),
        ({"messages": [USER, turn("tool", "5"), ASSISTANT]}, "unknown role 'tool' in message 2"),
        ({"messages": [USER, turn("assistant", "")]}, "empty response"),
        ({"messages": [turn("user", [{"type": "text"}]), ASSISTANT]}, "user message is not a string"),
        ({"messages": [{"role": "user"}, ASSISTANT]}, "user message is not a string"),
    ],
)
def test_reasons(fields, reason):
    with pytest.raises(BadRecord) as raised:
        to_messages(fields)
    assert str(raised.value) == reason


def test_bad_records_are_refused_by_line(tmp_path):
    source = write(tmp_path / "a.jsonl", GOOD, "{", *[NO_RESPONSE] * 6)
    with pytest.raises(PerfitError) as raised:
        check_records(source)
    assert raised.value.problem == (
        f"{source}: 7 of 8 records cannot be used: line 2: not valid JSON (column 2: Expecting property name"
        " enclosed in double quotes); line 3: no response; line 4: no response; line 5: no response;"
        " line 6: no response; and 2 more"
    )
    assert "data.bad_records: skip" in raised.value.fix


def test_bad_records_are_skipped_by_line(tmp_path):
    report = check_records(write(tmp_path / "a.jsonl", GOOD, NO_RESPONSE, "7", GOOD), "skip")
    assert [record.line for record in report.usable] == [1, 4]
    assert report.skipped == ((2, "no response"), (3, "not a JSON object"))


def test_no_usable_record_is_an_error_even_when_skipping(tmp_path):
    with pytest.raises(PerfitError, match=r"no usable record: line 1: no response"):
        check_records(write(tmp_path / "a.jsonl", NO_RESPONSE), "skip")
