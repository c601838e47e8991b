"""Messages from tables. Oracle: the wire format of protocol buffers, and what protoc makes of the same declaration."""

import pytest

from vitok.serving.proto_building import Fields, build_pool, message_classes

pytest.importorskip("google.protobuf", reason="the extra grpc is not installed")

FIELDS: Fields = {
    "Outer": {
        "plain": (1, "string"),
        "maybe": (2, "double?"),
        "other": (4, "bool?"),
        "many": (5, "int64*"),
        "inner": (6, "Outer.Inner*"),
        "named": (7, "{Choice}"),
    },
    "Outer.Inner": {"data": (1, "bytes")},
    "Choice": {"text": (1, "string|"), "number": (3, "uint32|"), "always": (9, "float")},
}
METHODS = {"Ask": ("Outer", "Choice", False), "Talk": ("Outer", "Outer", True)}


@pytest.fixture(scope="module")
def pool():
    return build_pool("test/outer.proto", "a.b.Asking", FIELDS, METHODS, wanted="a test")


def test_fields_are_as_declared(pool) -> None:
    types = message_classes(pool, "a.b", FIELDS)
    message = types["Outer"](plain="x", maybe=0.0, many=[1, -1])
    message.inner.add(data=b"\x00")
    message.named["k"].number = 7
    again = types["Outer"].FromString(message.SerializeToString())
    assert again == message
    assert (again.HasField("maybe"), again.HasField("other")) == (True, False)
    assert type(again.inner[0]).DESCRIPTOR.full_name == "a.b.Outer.Inner"
    assert again.named["k"].WhichOneof("parameter_choice") == "number"
    # Field 1, two bytes long, "x"; field 2 is told apart from its default.
    assert types["Outer"](plain="x").SerializeToString() == b"\x0a\x01x"
    assert types["Outer"](maybe=0.0).SerializeToString() == b"\x11" + bytes(8)


def test_one_of_a_choice_puts_away_the_other(pool) -> None:
    choice = message_classes(pool, "a.b", FIELDS)["Choice"](text="x", always=1.0)
    choice.number = 3
    assert (choice.text, choice.number, choice.always) == ("", 3, 1.0)


def test_the_service_has_its_methods(pool) -> None:
    service = pool.FindServiceByName("a.b.Asking")
    found = {
        item.name: (item.input_type.name, item.output_type.name, item.client_streaming) for item in service.methods
    }
    assert found == METHODS


def test_protoc_makes_the_same(pool, tmp_path) -> None:
    protoc = pytest.importorskip("grpc_tools.protoc", reason="grpcio-tools is not installed")
    from google.protobuf import descriptor_pb2

    source = """
    syntax = "proto3";
    package a.b;
    message Outer {
      message Inner { bytes data = 1; }
      string plain = 1;
      optional double maybe = 2;
      optional bool other = 4;
      repeated int64 many = 5;
      repeated Inner inner = 6;
      map<string, Choice> named = 7;
    }
    message Choice {
      oneof parameter_choice { string text = 1; uint32 number = 3; }
      float always = 9;
    }
    """
    (tmp_path / "outer.proto").write_text(source)
    out = tmp_path / "outer.bin"
    assert protoc.main(["", f"-I{tmp_path}", f"--descriptor_set_out={out}", "outer.proto"]) == 0
    [theirs] = descriptor_pb2.FileDescriptorSet.FromString(out.read_bytes()).file
    ours = descriptor_pb2.FileDescriptorProto()
    pool.FindFileByName("test/outer.proto").CopyToProto(ours)
    assert [plain(item) for item in ours.message_type] == [plain(item) for item in theirs.message_type]


def plain(message):
    fields = [
        (
            item.name,
            item.number,
            item.type,
            item.label,
            item.type_name,
            item.proto3_optional,
            item.HasField("oneof_index"),
        )
        for item in message.field
    ]
    nested = sorted((item.name, item.options.map_entry, plain(item)) for item in message.nested_type)
    return message.name, fields, sorted(item.name for item in message.oneof_decl), nested
