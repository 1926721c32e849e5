"""The deployment files agree with the schemas of Ray and KubeRay, each other and the tree.

KubeRay's schema is structural: the API server drops an unknown key without a word. A misspelt
`terminationGracePeriodSeconds` would so be a silent default, which is why unknown keys fail here.
"""

from __future__ import annotations

import copy
import gzip
import importlib.util
import json
import re
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import jsonschema
import jsonschema.validators
import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CLUSTER = ROOT / "cluster"
CRD_FOLDER = ROOT.parent / "shared" / "schemas" / "kuberay"
RAY_UP = ["ray-up-aws.yaml", "ray-up-local.yaml"]
MANIFESTS = ["kuberay-cluster.yaml", "kuberay-job.yaml"]
MIN_GRACE_SECONDS = 60


def load(name: str) -> Any:
    return yaml.safe_load((CLUSTER / name).read_text())


def cluster_spec(manifest: dict[str, Any]) -> dict[str, Any]:
    return manifest["spec"].get("rayClusterSpec", manifest["spec"])


def groups(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def containers(spec: dict[str, Any]) -> list[dict[str, Any]]:
    return [c for group in groups(spec) for c in group["template"]["spec"]["containers"]]


def env_values(group: dict[str, Any]) -> dict[str, str]:
    [container] = group["template"]["spec"]["containers"]
    return {entry["name"]: entry["value"] for entry in container.get("env", [])}


def quantity(text: str) -> Fraction:
    """A Kubernetes quantity ("500m", "3Gi", "4") as a number."""
    units = {"": Fraction(1), "m": Fraction(1, 1000), "Mi": Fraction(2**20), "Gi": Fraction(2**30)}
    number, unit = re.fullmatch(r"([0-9.]+)(\D*)", text).groups()  # type: ignore[union-attr]
    return Fraction(number) * units[unit]


def walk(node: Any) -> Iterator[dict[str, Any]]:
    if isinstance(node, dict):
        yield node
        node = list(node.values())
    if isinstance(node, list):
        for child in node:
            yield from walk(child)


# --- ray up -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def ray_up_schema() -> dict[str, Any]:
    spec = importlib.util.find_spec("ray")  # finds the wheel, does not import it
    assert spec is not None
    assert spec.origin is not None
    return json.loads((Path(spec.origin).parent / "autoscaler" / "ray-schema.json").read_text())


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_file_follows_the_schema_of_the_installed_ray(name: str, ray_up_schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(ray_up_schema).validate(load(name))


def test_ray_up_schema_catches_a_misspelt_key(ray_up_schema: dict[str, Any]) -> None:
    config = load("ray-up-aws.yaml")
    config["available_node_types"]["train-gpu"]["max_worker"] = 4
    with pytest.raises(jsonschema.ValidationError, match="max_worker"):
        jsonschema.Draft7Validator(ray_up_schema).validate(config)


@pytest.mark.parametrize("name", RAY_UP)
def test_ray_up_leaves_no_command_to_the_defaults(name: str) -> None:
    # Ray's AWS default for an absent list installs a nightly build over the image's Ray.
    config = load(name)
    for stage in ("initialization_", "setup_", "head_setup_", "worker_setup_"):
        assert config[f"{stage}commands"] == []
    assert not any("pip" in c for c in config["head_start_ray_commands"])


def test_aws_node_types_are_on_demand_head_spot_generation_gpu_training() -> None:
    config = load("ray-up-aws.yaml")
    types = config["available_node_types"]
    head = types[config["head_node_type"]]
    spot = {name for name, t in types.items() if "InstanceMarketOptions" in t["node_config"]}
    assert head["resources"] == {"CPU": 0}
    assert spot == {"generate-spot"}
    assert types["train-gpu"]["resources"]["GPU"] == 1
    for name, node in types.items():
        market = "spot" if name in spot else "on-demand"
        assert node["labels"] == {"ray.io/market-type": market}
    workers = sum(t.get("max_workers", 0) for t in types.values())
    assert config["max_workers"] == workers


def test_aws_node_configs_are_valid_run_instances_requests() -> None:
    # Ray hands node_config to EC2 unread; botocore carries the request's model, so no network.
    session = pytest.importorskip("botocore.session").get_session()
    validator = pytest.importorskip("botocore.validate").ParamValidator()
    shape = session.get_service_model("ec2").operation_model("RunInstances").input_shape
    for name, node in load("ray-up-aws.yaml")["available_node_types"].items():
        request = {**node["node_config"], "MinCount": 1, "MaxCount": 1}
        report = validator.validate(request, shape)
        assert not report.has_errors(), f"{name}: {report.generate_report()}"


def test_local_head_offers_no_cpus() -> None:
    config = load("ray-up-local.yaml")
    assert config["provider"]["type"] == "local"
    assert "--num-cpus=0" in " ".join(config["head_start_ray_commands"])


# --- KubeRay ----------------------------------------------------------------------------------


def strict(schema: dict[str, Any]) -> dict[str, Any]:
    """The JSON Schema that accepts what the API server would keep whole.

    Covers the extensions by which a structural schema differs: unknown fields are refused unless
    preserved, embedded objects have the three usual fields, `nullable` admits null. Int-or-string
    needs nothing, its `anyOf` says it. CEL rules are out of reach here.
    """
    out = copy.deepcopy(schema)
    if out.get("type") == "object" and "additionalProperties" not in out:
        if out.get("x-kubernetes-embedded-resource"):
            usual = {"apiVersion": {"type": "string"}, "kind": {"type": "string"}}
            out["properties"] = {**usual, "metadata": {}, **out.get("properties", {})}
        if not out.get("x-kubernetes-preserve-unknown-fields"):
            out["additionalProperties"] = False
    for name, child in out.get("properties", {}).items():
        out["properties"][name] = strict(child)
    for key in ("items", "additionalProperties"):
        if isinstance(out.get(key), dict):
            out[key] = strict(out[key])
    if out.pop("nullable", False):
        return {"anyOf": [out, {"type": "null"}]}
    return out


def distinct_keys(_validator: Any, names: list[str], items: Any, _schema: Any) -> Iterator[jsonschema.ValidationError]:
    """`x-kubernetes-list-map-keys`: a list that is a map, so its keys may not repeat."""
    seen = [tuple(item.get(name) for name in names) for item in items]
    for key in sorted({str(key) for key in seen if seen.count(key) > 1}):
        yield jsonschema.ValidationError(f"duplicate list entry {key} (keys: {names})")


StructuralValidator: Any = jsonschema.validators.extend(
    jsonschema.Draft202012Validator, {"x-kubernetes-list-map-keys": distinct_keys}
)


def validate_structural(document: Any, schema: dict[str, Any]) -> None:
    StructuralValidator(strict(schema)).validate(document)


@pytest.fixture(scope="module")
def kuberay_schemas() -> dict[str, dict[str, Any]]:
    """openAPIV3Schema of version v1 by kind, with the part of ObjectMeta that we use."""
    if not CRD_FOLDER.is_dir():
        pytest.skip("the KubeRay CRDs are not beside this checkout (shared/schemas/kuberay)")
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    schemas: dict[str, dict[str, Any]] = {}
    for plural in ("rayclusters", "rayjobs"):
        with gzip.open(CRD_FOLDER / f"ray.io_{plural}.yaml.gz") as file:
            crd = yaml.load(file, Loader=loader)["spec"]
        [version] = [v for v in crd["versions"] if v["name"] == "v1"]
        schema = version["schema"]["openAPIV3Schema"]
        # A CRD says only "object" here: the API server knows its own ObjectMeta.
        text: dict[str, Any] = {"type": "string"}
        texts: dict[str, Any] = {"type": "object", "additionalProperties": text}
        schema["properties"]["metadata"]["properties"] = {
            **{key: text for key in ("name", "generateName", "namespace")},
            **{key: texts for key in ("labels", "annotations")},
        }
        schemas[crd["names"]["kind"]] = schema
    return schemas


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifest_follows_the_crd(name: str, kuberay_schemas: dict[str, dict[str, Any]]) -> None:
    manifest = load(name)
    assert manifest["apiVersion"] == "ray.io/v1"
    validate_structural(manifest, kuberay_schemas[manifest["kind"]])


@pytest.mark.parametrize(
    "path",
    [
        (),
        ("metadata",),
        ("spec",),
        ("spec", "authOptions"),
        ("spec", "headGroupSpec", "template", "spec"),
        ("spec", "workerGroupSpecs", 1, "template", "spec", "containers", 0, "resources"),
        ("spec", "workerGroupSpecs", 1, "template", "spec", "volumes", 0, "emptyDir"),
    ],
    ids=lambda path: ".".join(map(str, path)) or "root",
)
def test_misspelt_key_is_caught_at_every_depth(
    path: tuple[str | int, ...], kuberay_schemas: dict[str, dict[str, Any]]
) -> None:
    manifest = load("kuberay-cluster.yaml")
    node: Any = manifest
    for step in path:
        node = node[step]
    node["terminationGraceSeconds"] = 90
    with pytest.raises(jsonschema.ValidationError, match="terminationGraceSeconds") as caught:
        validate_structural(manifest, kuberay_schemas["RayCluster"])
    assert tuple(caught.value.absolute_path) == path


def test_duplicate_entry_of_a_list_map_is_caught(kuberay_schemas: dict[str, dict[str, Any]]) -> None:
    manifest = load("kuberay-cluster.yaml")
    [head] = manifest["spec"]["headGroupSpec"]["template"]["spec"]["containers"]
    head["ports"].append({"containerPort": 6379, "protocol": "TCP"})
    head["ports"][0]["protocol"] = "TCP"
    with pytest.raises(jsonschema.ValidationError, match="duplicate list entry"):
        validate_structural(manifest, kuberay_schemas["RayCluster"])


@pytest.mark.parametrize(
    ("extension", "document"),
    [
        ({"x-kubernetes-preserve-unknown-fields": True}, {"anything": 1}),
        ({"x-kubernetes-embedded-resource": True}, {"kind": "Pod", "metadata": {"name": "a"}}),
        ({"nullable": True}, None),
    ],
    ids=["preserve-unknown-fields", "embedded-resource", "nullable"],
)
def test_extension_admits_what_it_is_for(extension: dict[str, Any], document: Any) -> None:
    bare: dict[str, Any] = {"type": "object"}
    validate_structural(document, {**bare, **extension})
    with pytest.raises(jsonschema.ValidationError):
        validate_structural(document, bare)


def test_both_manifests_describe_the_same_cluster() -> None:
    cluster, job = (cluster_spec(load(name)) for name in MANIFESTS)
    assert cluster == job


def test_ray_versions_agree_with_the_constraints() -> None:
    constraints = (ROOT / "constraints.txt").read_text()
    pinned = re.findall(r"(?m)^ray(?:\[[^\]]*\])?==([^\s;#]+)", constraints)
    assert len(pinned) == 1, f"constraints.txt must pin ray once, has {pinned}"
    for name in MANIFESTS:
        assert cluster_spec(load(name))["rayVersion"] == pinned[0], name
    assert pinned[0] in (CLUSTER / "ray-up-aws.yaml").read_text()


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_pod_outlives_the_graceful_stop_inside_it(name: str) -> None:
    spec = cluster_spec(load(name))
    head, *workers = groups(spec)
    waits = [int(env_values(head)["RAY_JOB_STOP_WAIT_TIME_S"])]
    waits += [int(env_values(w)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]) for w in workers]
    for group, wait_seconds in zip(groups(spec), waits, strict=True):
        grace_seconds = group["template"]["spec"]["terminationGracePeriodSeconds"]
        assert grace_seconds >= MIN_GRACE_SECONDS
        assert MIN_GRACE_SECONDS <= wait_seconds < grace_seconds


@pytest.mark.parametrize("name", MANIFESTS)
def test_requests_equal_limits(name: str) -> None:
    spec = cluster_spec(load(name))
    for holder in [spec["autoscalerOptions"], *containers(spec)]:
        assert holder["resources"]["requests"] == holder["resources"]["limits"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_head_takes_no_tasks_and_only_generation_is_on_spot(name: str) -> None:
    spec = cluster_spec(load(name))
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
    for group in groups(spec):
        market = "spot" if group.get("groupName") == "generate-spot" else "on-demand"
        selector = group["template"]["spec"]["nodeSelector"]
        assert group["labels"] == {"ray.io/market-type": market}
        assert selector == {"karpenter.sh/capacity-type": market}
    on_gpu = [g for g in groups(spec) if "nvidia.com/gpu" in json.dumps(g["template"]["spec"])]
    assert [g["groupName"] for g in on_gpu] == ["train-gpu"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_object_store_fits_into_shared_memory_and_that_into_the_limit(name: str) -> None:
    for group in groups(cluster_spec(load(name))):
        pod = group["template"]["spec"]
        [shm] = pod["volumes"]
        [container] = pod["containers"]
        assert container["volumeMounts"] == [{"name": shm["name"], "mountPath": "/dev/shm"}]
        shm_bytes = quantity(shm["emptyDir"]["sizeLimit"])
        assert shm["emptyDir"]["medium"] == "Memory"
        assert int(group["rayStartParams"]["object-store-memory"]) < shm_bytes
        assert shm_bytes < quantity(container["resources"]["limits"]["memory"]) / 2


@pytest.mark.parametrize("name", MANIFESTS)
def test_ray_token_and_s3_credentials_come_from_secrets(name: str) -> None:
    spec = cluster_spec(load(name))
    assert spec["authOptions"] == {"mode": "token", "secretName": "genai-ray-token"}
    for container in containers(spec):
        assert container["envFrom"] == [{"secretRef": {"name": "genai-ray-s3"}}]


# --- the files and the tree -------------------------------------------------------------------

CREDENTIAL_NAME = re.compile(r"KEY|SECRET|TOKEN|PASSWORD", re.IGNORECASE)
CREDENTIAL_TEXT = re.compile(
    r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b"
    r"|-----BEGIN [A-Z ]*PRIVATE KEY"
    r"|://[^/\s:@]+:[^/\s@]+@"
    r"|(?i:secret_access_key|access_key_id|auth_token|password)[\"']?\s*[:=]\s*[\"']?[\w+/]{8,}"
)


def literal_credentials(text: str, document: Any = None) -> list[str]:
    found = [match.group() for match in CREDENTIAL_TEXT.finditer(text)]
    for node in walk(document):
        if CREDENTIAL_NAME.search(str(node.get("name", ""))) and "value" in node:
            found.append(f"env {node['name']} has a literal value")
        if node.get("kind") == "Secret":
            found.append("a Secret with its content")
    return found


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_no_literal_credentials(path: Path) -> None:
    text = path.read_text()
    documents = list(yaml.safe_load_all(text)) if path.suffix == ".yaml" else None
    assert literal_credentials(text, documents) == []


@pytest.mark.parametrize(
    "text",
    [
        "aws_access_key_id: " + "AKIA" + "A" * 16,
        "AWS_SECRET_ACCESS_KEY=abcdefghijklmnop",
        "endpoint: https://user:pass@storage.example",
        "env: [{name: RAY_AUTH_TOKEN, value: x}]",
        "{kind: Secret, stringData: {auth_token: x}}",
    ],
)
def test_a_literal_credential_is_found(text: str) -> None:
    assert literal_credentials(text, yaml.safe_load(text))


@pytest.mark.parametrize("path", sorted(CLUSTER.iterdir()), ids=lambda path: path.name)
def test_every_job_file_named_exists(path: Path) -> None:
    for name in re.findall(r"\bjobs/[\w/.-]+\.(?:py|yaml)\b", path.read_text()):
        assert (ROOT / name).is_file(), f"{path.name} names {name}"


def test_job_runs_the_pipeline() -> None:
    command = load("kuberay-job.yaml")["spec"]["entrypoint"].split()
    assert command[:2] == ["python", "jobs/pipeline.py"]
    assert command[3].startswith("store=s3://")


def dockerfile_instructions() -> list[str]:
    text = re.sub(r"(?m)^\s*#.*\n", "", (CLUSTER / "Dockerfile").read_text())
    return re.sub(r"\\\n\s*", " ", text).splitlines()


def dockerfile_sources() -> set[str]:
    copies = [line.split()[1:] for line in dockerfile_instructions() if line.startswith("COPY ")]
    return {s for words in copies if "--from" not in words[0] for s in words[:-1]}


def test_dockerfile_copies_only_files_that_exist() -> None:
    assert {"pyproject.toml", "constraints.txt", "genai_ray"} <= dockerfile_sources()
    missing = sorted(s for s in dockerfile_sources() if not (ROOT / s).exists())
    assert missing == []


def test_build_context_holds_what_is_copied_and_nothing_else() -> None:
    lines = (CLUSTER / "Dockerfile.dockerignore").read_text().split()
    assert "*" in lines
    assert {line[1:] for line in lines if line.startswith("!")} == dockerfile_sources()


def test_image_does_not_end_as_root_and_uses_the_uid_of_the_manifests() -> None:
    instructions = dockerfile_instructions()
    assert [line for line in instructions if line.startswith("USER ")][-1] == "USER ray"
    [uid] = re.findall(r"useradd --uid (\d+)", "\n".join(instructions))
    for name in MANIFESTS:
        for group in groups(cluster_spec(load(name))):
            assert group["template"]["spec"]["securityContext"]["runAsUser"] == int(uid)
