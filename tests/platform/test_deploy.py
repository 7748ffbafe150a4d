"""What deploy/ says agrees with itself and with the platform; no container engine is needed."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from inference_service.kernels.engine.limits import KERNELS_A_CORE
from inference_service.triton.installation import Installation, Ports
from servicekit.settings import ServiceSettings

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"
COMPOSE = sorted((DEPLOY / "compose").glob("*.yaml"))
MANIFESTS = sorted((DEPLOY / "kubernetes").rglob("*.yaml"))
DOCKERFILES = sorted(DEPLOY.glob("*/Dockerfile"))
HOME = "/var/lib/dlmesh"
# Read by these files themselves, not by the platform.
OF_COMPOSE = {"DLMESH_CPUS", "DLMESH_MEMORY"}
Json = dict[str, Any]


def documents(file: Path) -> list[Json]:
    return [each for each in yaml.safe_load_all(file.read_text()) if each]


def manifests(kind: str = "") -> dict[str, Json]:
    """Objects by name, patches apart."""
    found = {}
    for file in MANIFESTS:
        if file.name.startswith("use-"):
            continue
        for each in documents(file):
            if not kind or each["kind"] == kind:
                found[f"{each.get('metadata', {}).get('name', file)}"] = each
    return found


def pods() -> dict[str, Json]:
    return {
        name: each["spec"]["template"]["spec"]
        for kind in ("StatefulSet", "Deployment")
        for name, each in manifests(kind).items()
    }


def containers() -> Iterator[tuple[Json, Json]]:
    for pod in pods().values():
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield pod, container


def services() -> dict[str, Json]:
    """Services of compose, all files merged."""
    merged: dict[str, Json] = {}
    for file in COMPOSE:
        for name, each in documents(file)[0]["services"].items():
            merged.setdefault(name, {}).update(each)
    return merged


def dockerfile(name: str) -> str:
    return (DEPLOY / name / "Dockerfile").read_text().replace("\\\n", " ")


def test_there_is_something_to_check() -> None:
    assert len(COMPOSE) == 4
    assert len(MANIFESTS) >= 8
    assert [file.parent.name for file in DOCKERFILES] == ["platform", "triton"]
    assert set(pods()) == set(services()) == {"dlmesh", "triton"}


@pytest.mark.parametrize("file", [*COMPOSE, *MANIFESTS, *DOCKERFILES], ids=lambda file: str(file.relative_to(DEPLOY)))
def test_variables_are_ones_that_the_platform_reads(file: Path) -> None:
    product = [
        *ROOT.glob("libs/*/[a-z]*/**/*.py"),
        *ROOT.glob("platform/*/*.py"),
        *ROOT.glob("gateway/*_service/**/*.py"),
    ]
    product += ROOT.glob("services/*/*_service/**/*.py")
    known = set().union(*(re.findall(r"[\"']{1}(DLMESH_[A-Z_]+)[\"']", path.read_text()) for path in product))
    assert "DLMESH_HTTP_PORT" in known
    assert set(re.findall(r"\bDLMESH_[A-Z_]+", file.read_text())) - known - OF_COMPOSE == set()


def test_both_tritons_are_started_alike() -> None:
    ours = Installation(Path("/x")).command(Path("/models"), Ports(1, 2, 3), "prefix")
    places = ("address", "port=", "backend-directory", "backend-config", "model-repository", "/x/")
    same = {word for word in ours if not any(place in word for place in places)}
    assert same >= {"--model-control-mode=explicit", "--disable-auto-complete-config"}
    command = re.search(r"^CMD (\[.*\])$", dockerfile("triton"), re.MULTILINE)
    assert command is not None
    words = yaml.safe_load(command[1])
    assert words[0] == "tritonserver"
    assert same <= set(words)
    assert "--model-repository=/models" in words


def test_triton_has_the_repository_alone_and_read_only() -> None:
    (mount,) = (each for each in pods()["triton"]["containers"][0]["volumeMounts"] if each["name"] == "home")
    assert mount == {"name": "home", "mountPath": "/models", "subPath": "inference/repository", "readOnly": True}
    (volume,) = services()["triton"]["volumes"]
    assert (volume["source"], volume["target"], volume["read_only"]) == ("home", "/models", True)
    assert volume["volume"] == {"subpath": "inference/repository"}
    # Made before it is mounted: by the image for compose, by an init container for Kubernetes.
    assert f"mkdir -p {HOME}/inference/repository" in dockerfile("platform")
    assert pods()["dlmesh"]["initContainers"][0]["command"] == ["mkdir", "-p", f"{HOME}/inference/repository"]


def test_the_home_is_one_volume_everywhere() -> None:
    assert f"DLMESH_HOME={HOME}" in dockerfile("platform")
    assert services()["dlmesh"]["volumes"] == [f"home:{HOME}"]
    assert all(
        {"name": "home", "mountPath": HOME} in container["volumeMounts"]
        for container in [*pods()["dlmesh"]["initContainers"], *pods()["dlmesh"]["containers"]]
    )


def test_nobody_but_the_platform_reaches_triton() -> None:
    policy = manifests("NetworkPolicy")["triton"]["spec"]
    assert policy["podSelector"]["matchLabels"] == {"app.kubernetes.io/name": "triton"}
    assert set(policy["policyTypes"]) == {"Ingress", "Egress"}
    (rule,) = policy["ingress"]
    assert rule["from"] == [{"podSelector": {"matchLabels": {"app.kubernetes.io/name": "dlmesh"}}}]
    assert {port["port"] for port in rule["ports"]} == {"http", "grpc"}
    networks = documents(DEPLOY / "compose" / "external-triton.yaml")[0]["networks"]
    assert services()["triton"]["networks"] == ["serving"]
    assert networks["serving"] == {"internal": True}
    assert "ports" not in services()["triton"]


def test_ranks_and_kernels_are_by_the_cores_of_the_container() -> None:
    (container,) = pods()["dlmesh"]["containers"]
    in_kubernetes = {each["name"]: each.get("value") for each in container["env"]}
    compose = documents(DEPLOY / "compose" / "compose.yaml")[0]["services"]["dlmesh"]
    in_compose = {name: re.sub(r"^\$\{\w+:-(.*)\}$", r"\1", value) for name, value in compose["environment"].items()}
    cores_in_compose = compose["deploy"]["resources"]["limits"]["cpus"].removeprefix("${DLMESH_CPUS:-").rstrip("}")
    for environment, cores in (
        (in_kubernetes, container["resources"]["limits"]["cpu"]),
        (in_compose, cores_in_compose),
    ):
        assert environment["DLMESH_SLOTS"] == cores
        assert environment["DLMESH_MAX_KERNELS"] == str(KERNELS_A_CORE * int(cores))


def test_the_platform_is_told_where_triton_is() -> None:
    patches = documents(DEPLOY / "kubernetes" / "external-triton" / "use-triton.yaml")
    (container,) = patches[1]["spec"]["template"]["spec"]["containers"]
    in_kubernetes = {each["name"]: each["value"] for each in container["env"]}
    in_compose = documents(DEPLOY / "compose" / "external-triton.yaml")[0]["services"]["dlmesh"]["environment"]
    assert in_kubernetes == in_compose
    ports = {port["name"]: port["port"] for port in manifests("Service")["triton"]["spec"]["ports"]}
    assert in_compose["DLMESH_TRITON_URL"] == f"http://triton:{ports['http']}"
    assert in_compose["DLMESH_TRITON_GRPC"] == f"triton:{ports['grpc']}"


def test_probes_and_services_name_ports_that_exist() -> None:
    for _, container in containers():
        ports = {port["name"] for port in container.get("ports", [])}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            if container.get("ports"):
                check = container[probe].get("httpGet") or container[probe]["tcpSocket"]
                assert check["port"] in ports
    for name, service in manifests("Service").items():
        named = {port["name"] for container in pods()[name]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
        assert service["spec"]["selector"] == {"app.kubernetes.io/name": name}


def test_the_public_port_is_the_platforms(tmp_path: Path) -> None:
    assert "DLMESH_HTTP_PORT=9280" in dockerfile("platform")
    assert "EXPOSE 9280" in dockerfile("platform")
    assert services()["dlmesh"]["ports"] == ["127.0.0.1:${DLMESH_HTTP_PORT:-9280}:9280"]
    (port,) = pods()["dlmesh"]["containers"][0]["ports"]
    assert port["containerPort"] == 9280
    # What an empty variable of compose means.
    settings = ServiceSettings.from_environment("models", {"DLMESH_HOME": str(tmp_path), "DLMESH_DATABASE_URL": ""})
    assert settings.database_url.startswith("sqlite:")


def test_nothing_is_root_or_may_become_it() -> None:
    for pod, container in containers():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        assert pod["automountServiceAccountToken"] is False
        # Else a Service named dlmesh would set variables that begin like ours.
        assert pod["enableServiceLinks"] is False
        assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    for service in services().values():
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert "privileged" not in service
    for file in DOCKERFILES:
        assert re.findall(r"^USER (.*)$", file.read_text(), re.MULTILINE) == ["10001:10001"]


def test_everything_has_limits() -> None:
    for _, container in containers():
        assert set(container["resources"]["limits"]) >= {"cpu", "memory"}
    for service in services().values():
        assert set(service["deploy"]["resources"]["limits"]) == {"cpus", "memory", "pids"}


def test_volumes_that_are_mounted_exist() -> None:
    for pod, container in containers():
        assert {mount["name"] for mount in container.get("volumeMounts", [])} <= {
            each["name"] for each in pod["volumes"]
        }
        for volume in pod["volumes"]:
            if claim := volume.get("persistentVolumeClaim"):
                assert claim["claimName"] in manifests("PersistentVolumeClaim")
    assert "home" in documents(DEPLOY / "compose" / "compose.yaml")[0]["volumes"]


def test_what_images_copy_and_compose_builds_exists() -> None:
    for name in ("platform", "triton"):
        for source in re.findall(r"^COPY (\S+) \S+$", dockerfile(name), re.MULTILINE):
            assert (ROOT / source).exists(), source
        assert services()[{"platform": "dlmesh"}.get(name, name)]["build"]["dockerfile"] == f"deploy/{name}/Dockerfile"
    assert (DEPLOY / "compose" / "../.." / "Makefile").resolve() == ROOT / "Makefile"
    assert re.search(r"^setup:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "RUN make setup" in dockerfile("platform")
    ignored = (DEPLOY / "platform" / "Dockerfile.dockerignore").read_text().split()
    assert {".git", ".venv", ".triton", ".dlmesh"} <= set(ignored)


def test_overlays_name_files_that_exist() -> None:
    for file in MANIFESTS:
        if file.name == "kustomization.yaml":
            (kustomization,) = documents(file)
            paths = [
                *kustomization["resources"],
                *(each["path"] for each in kustomization.get("patches", []) if "path" in each),
            ]
            assert all((file.parent / path).exists() for path in paths)


def test_no_registry_and_no_password_is_written_down() -> None:
    for file in (path for path in DEPLOY.rglob("*") if path.is_file()):
        text = file.read_text()
        # What is left are names of labels, resources and schemas.
        hosts = set(re.findall(r"\b[\w-]+(?:\.[\w-]+)*\.(?:io|com|org|net)\b", text))
        assert hosts <= {"app.kubernetes.io", "kustomize.config.k8s.io", "networking.k8s.io", "nvidia.com"}, file
        assert not re.search(r"(?i)password[\"']?\s*[:=]\s*[\"']?[A-Za-z0-9]", text), file
    images = {container["image"] for _, container in containers()} | {each["image"] for each in services().values()}
    assert images == {"dlmesh", "dlmesh-triton"}
