"""The generated descriptors against the reference: every path, verb, name, type, shape and code.

data/operations.tsv, schemas.tsv (the schemas that an operation reaches) and queries.tsv restate the REST reference;
additions.tsv and extra_operations.tsv are what this platform serves beyond it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

import pytest
from dlmesh.models.v1 import models_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from testkit.contract_surface import (
    BASE,
    NOT_BUILT,
    Rule,
    http_contract,
    http_rule,
    methods,
    pool,
    rules,
    schemas,
    table,
    type_of,
)

OPERATIONS = {row["operationId"]: row for row in table("operations")}
EXTRA_OPERATIONS = {row["operationId"]: row for row in table("extra_operations")}
EMPTY, TEXT, STRUCT = "google.protobuf.Empty", "google.protobuf.StringValue", "google.protobuf.Struct"
HTTP_BODY = "google.api.HttpBody"
INTERNAL_SERVICES = {
    "dlmesh.inference.v1.AdmissionService",
    "dlmesh.models.v1.HyperparameterService",
    "dlmesh.models.v1.ModelCopyService",
    "dlmesh.scheduling.v1.JobService",
    "dlmesh.scheduling.v1.TrialService",
    "dlmesh.settings.v1.SettingsService",
    "dlmesh.training.v1.MetricService",
    "dlmesh.training.v1.TrainingTrialService",
    "envoy.service.auth.v3.Authorization",
}
# Public, but streams both ways, which no path of REST can carry.
GRPC_ONLY_SERVICES = {"dlmesh.inference.v1.KernelStreamService"}
# The reference says nothing; we answer with the task (data/operations.tsv keeps the reference's word).
RETURNS_INSTEAD = {"execsPost": "ExecDetails"}
# Sent as chunks, because the same operation may answer JSON, text or a zip.
SENT_AS_CHUNKS = {"LogDetails": "dlmesh.scheduling.v1.ExecLog", "ResultDetails": "dlmesh.scheduling.v1.ExecResult"}
# Words that stand where a name may: the services refuse to create anything of that name.
RESERVED = {
    # Executors are called by numbers.
    "/platform/rest/conductor/v1/instances/{}/applications/{}": {"logs"},
    f"{BASE}/edimodels": {"new"},
    f"{BASE}/execs": {"frameworks"},
    f"{BASE}/hypersearch": {"algorithm"},
    f"{BASE}/hypersearch/algorithm": {"install"},
    f"{BASE}/inferences": {"startpredict"},
    f"{BASE}/models": {"files", "weightfile"},
    f"{BASE}/modeltemplates": {"files"},
}
# wmla-facts.md section 8
KERNEL_WORDS = {"task_pipe_size"}
# 64-bit integers are printed as JSON strings, which the reference's numbers are not.
SAME_TYPE = {"int64": "double"}


def response_schema(operation_id: str) -> str:
    return RETURNS_INSTEAD.get(operation_id, OPERATIONS[operation_id]["returns"])


def schema_roots() -> Iterator[tuple[str, Descriptor]]:
    """Each schema that an operation names, with the message that carries it."""
    for operation_id, row in OPERATIONS.items():
        rule = rules()[operation_id]
        if row["request"].startswith("json:"):
            yield row["request"].removeprefix("json:"), rule.body_message
        returned = re.sub(r"^array\[(.*)\]$", r"\1", response_schema(operation_id))
        if returned in SENT_AS_CHUNKS:
            yield returned, pool().FindMessageTypeByName(SENT_AS_CHUNKS[returned])
        elif returned in schemas():
            yield returned, rule.method.output_type


def schema_pairs() -> dict[tuple[str, str], Descriptor]:
    """Schema and message, wherever one is reached from an operation through fields of the same name."""
    pairs: dict[tuple[str, str], Descriptor] = {}
    open_pairs = list(schema_roots())
    while open_pairs:
        schema, message = open_pairs.pop()
        if (schema, message.full_name) in pairs:
            continue
        pairs[schema, message.full_name] = message
        fields = {field.json_name: field for field in message.fields}
        for name, kind in schemas()[schema].items():
            inner = kind.strip("[]")
            if inner in schemas() and name in fields and fields[name].message_type is not None:
                open_pairs.append((inner, fields[name].message_type))
    return pairs


def test_no_operation_of_the_reference_waits_to_be_built() -> None:
    assert {name for name in OPERATIONS if NOT_BUILT in rules()[name].contract.errors} == set()


def test_every_operation_of_the_reference_has_a_rule() -> None:
    assert len(OPERATIONS) == 72
    assert OPERATIONS.keys() - rules().keys() == set()
    assert rules().keys() - OPERATIONS.keys() == EXTRA_OPERATIONS.keys()


@pytest.mark.parametrize("operation_id", OPERATIONS)
def test_operation_matches_the_reference(operation_id: str) -> None:
    row, rule = OPERATIONS[operation_id], rules()[operation_id]
    assert (rule.verb, rule.template) == (row["verb"], BASE + re.sub(r"\{[^}]*\}", "{}", row["path"]))
    assert rule.contract.success == int(row["success"])
    documented = {int(code) for code in row["other codes"].split(",")}
    assert documented - set(rule.contract.errors) == set(), "documented codes that http_contract lacks"
    assert list(rule.contract.errors) == sorted(set(rule.contract.errors))
    check_request_kind(rule, row["request"])
    check_response_shape(rule, response_schema(operation_id))


def check_request_kind(rule: Rule, request: str) -> None:
    if request == "none":
        assert rule.body == ""
        assert not rule.method.client_streaming
    elif request.startswith("multipart:"):
        assert rule.method.client_streaming
        assert rule.body_message.full_name == HTTP_BODY
    else:
        assert rule.body != ""
        assert not rule.method.client_streaming


def check_response_shape(rule: Rule, returns: str) -> None:
    array = returns.startswith("array[")
    assert rule.method.server_streaming == (array or returns in SENT_AS_CHUNKS)
    plain = {"-": EMPTY, "String": TEXT, "Integer": "google.protobuf.Int32Value", "StringMap": STRUCT}
    plain |= dict.fromkeys(SENT_AS_CHUNKS, HTTP_BODY)
    element = returns.removeprefix("array[").removesuffix("]")
    assert rule.method.output_type.full_name == plain.get(element, rule.method.output_type.full_name)
    if element not in plain:
        assert element in schemas()
        assert rule.method.output_type.full_name.startswith("dlmesh.")


@pytest.mark.parametrize("operation_id", EXTRA_OPERATIONS)
def test_operation_beyond_the_reference_stays(operation_id: str) -> None:
    row, rule = EXTRA_OPERATIONS[operation_id], rules()[operation_id]
    assert (rule.verb, rule.template, rule.contract.success) == (row["verb"], row["path"], int(row["success"]))


def test_query_parameters_of_the_reference_are_there() -> None:
    missing = []
    for row in table("queries"):
        field = rules()[row["operationId"]].query_fields().get(row["parameter"])
        # In a query everything is text, so a string takes any type (flag=False, start=3).
        if field is None or type_of(field) not in {row["type"], "string"}:
            missing.append(row)
    assert missing == []


def test_every_schema_is_reached() -> None:
    reached = {schema for schema, _ in schema_pairs()}
    assert schemas().keys() - reached == set()


@pytest.mark.parametrize(("schema", "message"), schema_pairs())
def test_fields_match_the_reference(schema: str, message: str) -> None:
    """JSON names, type classes and array shapes; a field that is missing or of another type is named."""
    fields = {field.json_name: field for field in schema_pairs()[schema, message].fields}
    wrong = []
    for name, kind in schemas()[schema].items():
        if name not in fields:
            wrong.append(f"{name}: missing")
        elif not same_type(kind, type_of(fields[name])):
            wrong.append(f"{name}: {kind} in the reference, {type_of(fields[name])} here")
    assert wrong == []


def same_type(reference: str, ours: str) -> bool:
    if reference.startswith("[["):
        return ours == "[[]]"
    if reference.startswith("["):
        return ours.startswith("[") and same_type(reference[1:-1], ours[1:-1])
    if reference in schemas():
        return ours.startswith("dlmesh.")
    return SAME_TYPE.get(reference, reference) == ours


@pytest.mark.parametrize(("schema", "message"), schema_pairs())
def test_zero_and_empty_can_be_printed(schema: str, message: str) -> None:
    """Printers leave out a scalar without presence when it is 0, false or ""."""
    descriptor = schema_pairs()[schema, message]
    variables = {name for rule in rules().values() if rule.method.input_type is descriptor for name in rule.variables}
    silent = [
        field.name
        for field in descriptor.fields
        if not field.is_repeated and not field.has_presence and field.name not in variables
    ]
    assert silent == []


def test_no_two_rules_are_the_same() -> None:
    seen: dict[tuple[str, str], str] = {}
    for operation_id, rule in rules().items():
        other = seen.setdefault((rule.verb, rule.template), operation_id)
        assert other == operation_id, f"{other} and {operation_id} are both {rule.verb} {rule.template}"


def test_words_that_shadow_names_are_the_reserved_ones() -> None:
    """Routers prefer a word to a variable: each such word is a name that nothing may have."""
    templates = {rule.template for rule in rules().values()}
    variable_parents = {t[: m.start()] for t in templates for m in re.finditer(r"/\{\}", t)}
    shadows: dict[str, set[str]] = {}
    for template in templates:
        parts = template.split("/")
        for depth in range(1, len(parts)):
            parent = "/".join(parts[:depth])
            if parent in variable_parents and parts[depth] != "{}":
                shadows.setdefault(parent, set()).add(parts[depth])
    assert shadows == RESERVED


def test_no_query_parameter_is_named_like_a_variable_of_a_path() -> None:
    """The gateway ignores a query parameter of such a name, lest it wins over the path."""
    variables = {
        rule.method.input_type.fields_by_name[v].json_name for rule in rules().values() for v in rule.variables
    }
    for operation_id, rule in rules().items():
        assert rule.query_fields().keys() & variables == set(), operation_id


def test_public_methods_have_a_rule_and_a_contract_and_internal_ones_neither() -> None:
    for method in methods():
        public = method.containing_service.full_name not in INTERNAL_SERVICES | GRPC_ONLY_SERVICES
        assert (http_rule(method).WhichOneof("pattern") is not None) == public, method.full_name
        assert bool(http_contract(method).operation_id) == public, method.full_name


@pytest.mark.parametrize("operation_id", rules())
def test_rule_is_one_that_transcoders_take(operation_id: str) -> None:
    """The constraints of Envoy's transcoder and of grpc-gateway, so that either may serve the contract."""
    rule = rules()[operation_id]
    fields = rule.method.input_type.fields_by_name
    assert re.fullmatch(r"(/([A-Za-z0-9_-]+|\{[a-z][a-z0-9_]*\}))+", rule.path), "one segment a variable"
    assert len(set(rule.variables)) == len(rule.variables)
    for name in rule.variables:
        assert name in fields, f"{{{name}}} is no field"
        assert type_of(fields[name]) == "string"
    if rule.body not in {"", "*"}:
        assert rule.body in fields
        assert fields[rule.body].message_type is not None
        assert not fields[rule.body].is_repeated
        assert rule.body not in rule.variables
    if rule.verb in {"GET", "DELETE"}:
        assert rule.body == ""
    for field in rule.query_fields().values():
        assert field.message_type is None, f"{field.name} cannot be written in a query"
    if rule.method.client_streaming:
        assert rule.body_message.full_name == HTTP_BODY
        assert not rule.method.server_streaming
    assert not http_rule(rule.method).additional_bindings
    assert rule.contract.success in {200, 201, 202, 204}
    if rule.contract.success == 204:
        assert rule.method.output_type.full_name == EMPTY


def all_fields() -> Iterator[FieldDescriptor]:
    open_messages = [message for method in methods() for message in (method.input_type, method.output_type)]
    seen = set()
    while open_messages:
        message = open_messages.pop()
        if message.full_name in seen or not message.full_name.startswith("dlmesh."):
            continue
        seen.add(message.full_name)
        yield from message.fields
        open_messages += [field.message_type for field in message.fields if field.message_type is not None]


def test_field_names_are_snake_case_and_json_names_are_only_for_the_reference() -> None:
    reference = {field for fields in schemas().values() for field in fields}
    reference |= {row["parameter"] for row in table("queries")} | {"csrftoken", "builtin"}
    reference |= {row["field"] for row in table("kernel_schemas")} | KERNEL_WORDS
    # programming-model.md section 1
    reference |= {"gpuslots", "gpumemused.total", "gpudevutil.total"}
    for field in all_fields():
        assert re.fullmatch(r"[a-z][a-z0-9]*(_[a-z][a-z0-9]*)*", field.name), field.full_name
        if field.json_name != camel_case(field.name):
            assert field.json_name in reference, f"{field.full_name} needs no json_name"


def camel_case(name: str) -> str:
    head, *rest = name.split("_")
    return head + "".join(part.capitalize() for part in rest)


def test_numbers_print_as_json_numbers() -> None:
    """A REST field of 64 bits would be printed in quotes."""
    for rule in rules().values():
        for message in (rule.method.input_type, rule.method.output_type):
            wide = {FieldDescriptor.TYPE_INT64, FieldDescriptor.TYPE_UINT64, FieldDescriptor.TYPE_BYTES}
            if message.full_name.startswith("dlmesh."):
                assert [field.full_name for field in message.fields if field.type in wide] == []


def test_error_details_can_be_printed() -> None:
    """Envoy prints google.rpc.Status details only of types that are in the set."""
    assert pool().FindMessageTypeByName("google.rpc.ErrorInfo") is not None


def test_learning_rates_print_as_they_were_written() -> None:
    text = '{"learningrate": 0.01, "weightdecay": 0.0005, "maxiteration": 0}'
    message = json_format.Parse(text, models_pb2.Hyperparameters())
    assert json.loads(json_format.MessageToJson(message)) == json.loads(text)


@pytest.mark.parametrize("operation", ["Get", "LogGet", "ResultGet", "StopPost", "Delete"])
def test_what_is_said_of_one_exec_task_may_be_forbidden(operation: str) -> None:
    # The reference knows no users that may not see each other's tasks.
    assert 403 in rules()[f"execsExecId{operation}"].contract.errors
