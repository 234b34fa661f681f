"""Reading records and checking them, on small files of every kind."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from perfit.errors import PerfitError
from perfit.records import BadRecord, Record, check_records, read_records, to_messages

GOOD = '{"instruction": "Two plus three?", "context": "", "response": "Five.", "category": "math"}'
NO_RESPONSE = '{"instruction": "Two plus three?"}'


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    ("second", "problem"),
    [
        ('{"instruction":', "not valid JSON (column 16: Expecting value)"),
        ('{"instruction": 5}', None),
        ("[1]", "not a JSON object"),
    ],
)
def test_a_line_that_pyarrow_would_refuse_the_whole_file_for(tmp_path, second, problem):
    """Which is why lines are read one by one, with the standard library."""
    source = write(tmp_path / "a.jsonl", GOOD, second, GOOD)
    with pytest.raises(pa.ArrowInvalid):
        pyarrow.json.read_json(source)
    records = read_records(source)
    assert [record.line for record in records] == [1, 2, 3]
    assert [record.problem for record in records] == [None, problem, None]


def test_a_text_that_pyarrow_would_take_for_a_date(tmp_path):
    source = write(tmp_path / "a.jsonl", '{"output": "2026-07-24"}')
    assert pyarrow.json.read_json(source)["output"].type == pa.timestamp("s")
    assert read_records(source)[0].fields == {"output": "2026-07-24"}


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
        ("bad.parquet", b"not parquet", "is not a Parquet file"),
        ("cut.parquet", b"PAR1 and no more", "is a damaged Parquet file, or of a type that cannot be read"),
        ("array.json", b'[{"a": 1}]', "is a JSON array, not one JSON object a line"),
    ],
)
def test_unusable_files(tmp_path, name, content, problem):
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
def test_sources_that_are_not_files(source, problem):
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
    assert problem == "nobody/nothing:test: cannot be read: the hub cannot be reached"
    assert "HF_TOKEN" in fix


# What must not happen while records are read


@pytest.fixture
def requests() -> Iterator[list[str]]:
    """The requests that a server on this machine gets; its address is the first of them."""
    seen: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            seen.append(self.path)
            self.send_error(404)

        do_HEAD = do_GET

        def log_message(self, *arguments):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        seen.append(f"http://127.0.0.1:{server.server_port}")
        yield seen
        server.shutdown()


def write_images(path: Path, address: str) -> None:
    """Records beside columns that `datasets` takes for images and sounds, of which it would fetch every one."""
    from datasets import Audio, Dataset, Features, Image, List, Value

    files = [f"{address}/a.png", str(path.with_name("private.png")), "/etc/passwd"]
    columns = {
        "instruction": ["Greet."] * 3,
        "output": ["Hello."] * 3,
        "image": [{"bytes": None, "path": file} for file in files],
        "pages": [[{"bytes": None, "path": file}] for file in files],
        "sound": [{"bytes": None, "path": file} for file in files],
    }
    plain = Features({"bytes": Value("binary"), "path": Value("string")})
    text = {"instruction": Value("string"), "output": Value("string")}
    stored = Features({**text, "image": plain, "pages": List(plain), "sound": plain})
    Dataset.from_dict(columns, features=stored).to_parquet(path)
    declared = Features({**text, "image": Image(), "pages": List(Image()), "sound": Audio()})
    table = pq.read_table(path)
    metadata = {"huggingface": json.dumps({"info": {"features": declared.to_dict()}})}
    pq.write_table(table.replace_schema_metadata(metadata), path)


def test_a_declared_image_opens_no_path_and_no_url(tmp_path, requests):
    path = tmp_path / "data/a.parquet"
    path.parent.mkdir()
    write_images(path, requests[0])
    code = f"""
import sys
opened = []
sys.addaudithook(lambda event, arguments: opened.append(arguments[0]) if event in ("open", "socket.connect") else None)
from perfit.records import read_records
records = read_records({str(path)!r})
print([record.fields for record in records])
print(*[o for o in opened if "png" in str(o) or "passwd" in str(o) or not isinstance(o, (str, int, bytes))])
print({{"datasets", "torch", "PIL"}} & set(sys.modules))
"""
    fields = [{"instruction": "Greet.", "output": "Hello."}] * 3
    assert python(code, tmp_path).splitlines() == [str(fields), "", "set()"]
    assert requests[1:] == []


def test_a_data_set_of_the_hub_is_read_without_its_images(tmp_path, requests, monkeypatch):
    """By the library's own reader of a directory, which is how it reads the files of a hub's."""
    path = tmp_path / "owner/name/train.parquet"
    path.parent.mkdir(parents=True)
    write_images(path, requests[0])
    monkeypatch.chdir(tmp_path)
    records = read_records("owner/name:train")
    assert [record.fields for record in records] == [{"instruction": "Greet.", "output": "Hello."}] * 3
    assert requests[1:] == []


def test_values_that_are_no_text_are_not_read(tmp_path):
    path = tmp_path / "a.parquet"
    moments = pa.array([0, 1, None, 3], pa.timestamp("s", tz="Nowhere/At all"))
    words = pa.array(["a", "b", None, "d"])
    storage = pa.ExtensionArray.from_storage(pa.json_(), pa.array(["1", "2", "3", None]))
    columns = {"instruction": words, "input": moments, "context": storage, "output": words.dictionary_encode()}
    pq.write_table(pa.table({**columns, "category": [1, 2, 3, None], "response": [b"\xff"] * 4}), path)
    first, second, third, fourth = [record.fields for record in read_records(str(path))]
    assert first == {
        "instruction": "a", "input": False, "context": "1", "output": "a", "category": 1, "response": False
    }  # fmt: skip
    assert (second["input"], third["input"], fourth["input"]) == (False, None, False)
    assert (third["output"], fourth["context"]) == (None, None)


def test_chats_with_more_than_text_in_their_messages(tmp_path):
    path = tmp_path / "a.parquet"
    chat = [{"role": "user", "content": "Hi", "image": b"\xff"}, {"role": "assistant", "content": "Ho", "image": None}]
    pq.write_table(pa.table({"messages": [None, [], chat, chat[:1]]}), path)
    rows = [record.fields["messages"] for record in read_records(str(path))]
    assert rows[:2] == [None, []]
    assert to_messages({"messages": rows[2]}) == [USER, ASSISTANT]
    assert [len(row) for row in rows[2:]] == [2, 1]


def test_text_that_is_not_utf_8_spoils_its_own_row_alone(tmp_path):
    path = tmp_path / "a.parquet"
    texts = pa.array([b"Add.", b"\xe9", None]).view(pa.string())
    pq.write_table(pa.table({"instruction": texts, "output": ["5", "6", "7"]}), path)
    report = check_records(str(path), "skip")
    assert [record.line for record in report.usable] == [1]
    assert report.skipped == ((2, "instruction is not a string"), (3, "unknown schema (keys: instruction, output)"))


def test_other_columns_are_read_if_they_are_asked_for(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": ["Add."], "output": ["5"], "topic": ["math"], "other": ["x"]}), path)
    (record,) = read_records(str(path), also=["topic"])
    assert record.fields == {"instruction": "Add.", "output": "5", "topic": "math"}


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        (pa.table({"question": ["?"]}), "has none of the columns that records have"),
        (pa.table([["a"], ["b"]], ["output", "output"]), "has two columns of the same name"),
    ],
)
def test_tables_that_hold_no_records(tmp_path, table, problem):
    pq.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(PerfitError, match=problem) as raised:
        read_records(str(tmp_path / "a.parquet"))
    assert "Alpaca" in raised.value.fix


def test_what_a_library_says_goes_to_the_log_alone(tmp_path, caplog):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"instruction": ["SECRET" * 9], "output": ["5"]}), path)
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"SECRET", b"\xff\xff\xff\xff\xff\xff")[: -len(whole) // 2] + whole[-8:])
    with pytest.raises(PerfitError) as raised:
        read_records(str(path))
    assert raised.value.problem == f"{path}: is a damaged Parquet file, or of a type that cannot be read"
    assert "perfit.errors" in caplog.text


ESCAPE = "\x1b]52;c;aGk=\x07\u202e"


@pytest.mark.parametrize(
    "fields",
    [
        {ESCAPE: 1},
        {"messages": [{"role": ESCAPE, "content": "Hi"}]},
        {"messages": [{"role": [ESCAPE], "content": "Hi"}]},
    ],
)
def test_nothing_of_a_record_moves_a_terminal(fields):
    with pytest.raises(BadRecord) as raised:
        to_messages(fields)
    assert str(raised.value).isprintable()


def test_a_reason_quotes_no_character_of_a_line(tmp_path):
    source = write(tmp_path / "a.jsonl", GOOD, '{"a": "\\q"}', '{"a": "\x1b"}', '{"a": "\\u12"}', '{"a": 1} x')
    reasons = [reason for _, reason in check_records(source, "skip").skipped]
    assert reasons == [
        "not valid JSON (column 8: Invalid \\escape)",
        "not valid JSON (column 8: Invalid control character at)",
        "not valid JSON (column 9: Invalid \\uXXXX escape)",
        "not valid JSON (column 10: Extra data)",
    ]


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
def test_reasons_for_bad_records(fields, reason):
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
