"""``deploy/cluster``: fields and types as published, commands that exist, packages by hash, shell without a finding."""

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from sslmed_dist import config
from sslmed_dist.cli_parser import parse

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "deploy" / "cluster"
DOCKERFILE = (CLUSTER / "Dockerfile").read_text()
SCRIPTS = sorted(CLUSTER.glob("*.sh"))
TREES = {path.stem: yaml.safe_load(path.read_text()) for path in sorted(CLUSTER.glob("*.yaml"))}

# What a field may hold. A tuple is a kind of object: (fields that must be there, all fields).
Kind = Any
TEXTS = {str: str}
# Kubernetes, core/v1, as far as these files go (kubernetes.io/docs/reference: PodSpec, Container).
SECURITY = ((), {"runAsNonRoot": bool, "runAsUser": int, "runAsGroup": int, "fsGroup": int})
LOCKED = ((), {"allowPrivilegeEscalation": bool, "capabilities": ((), {"drop": [str], "add": [str]})})
CONTAINER = (
    ("name", "image"),
    {
        "name": str,
        "image": str,
        "env": [(("name",), {"name": str, "value": str})],
        "ports": [(("containerPort",), {"containerPort": int, "name": str, "protocol": str})],
        "resources": ((), {"requests": TEXTS, "limits": TEXTS}),
        "securityContext": LOCKED,
        "volumeMounts": [(("name", "mountPath"), {"name": str, "mountPath": str, "readOnly": bool})],
    },
)
CLAIM = (("claimName",), {"claimName": str, "readOnly": bool})
VOLUME = (
    ("name",),
    {"name": str, "persistentVolumeClaim": CLAIM, "emptyDir": ((), {"medium": str, "sizeLimit": str})},
)
POD = (
    ("spec",),
    {
        "metadata": ((), {"labels": TEXTS, "annotations": TEXTS}),
        "spec": (
            ("containers",),
            {
                "containers": [CONTAINER],
                "volumes": [VOLUME],
                "terminationGracePeriodSeconds": int,
                "securityContext": SECURITY,
                "tolerations": [((), dict.fromkeys(("key", "operator", "value", "effect"), str))],
            },
        ),
    },
)
# KubeRay, ray.io/v1: raycluster_types.go, rayjob_types.go of ray-project/kuberay, read on 2026-11-26.
GROUP = {"rayStartParams": TEXTS, "template": POD}
HEAD = (("rayStartParams", "template"), {**GROUP, "serviceType": str, "enableIngress": bool})
WORKERS = (
    ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
    {**GROUP, "groupName": str, **dict.fromkeys(("replicas", "minReplicas", "maxReplicas", "numOfHosts"), int)},
)
RAY_CLUSTER = (
    ("headGroupSpec",),
    {
        "headGroupSpec": HEAD,
        "workerGroupSpecs": [WORKERS],
        "rayVersion": str,
        "enableInTreeAutoscaling": bool,
        "autoscalerOptions": ((), {"idleTimeoutSeconds": int, "upscalingMode": str, "image": str}),
        "suspend": bool,
    },
)
RAY_JOB = (
    (),
    {
        **dict.fromkeys(("activeDeadlineSeconds", "backoffLimit", "ttlSecondsAfterFinished"), int),
        **dict.fromkeys(("entrypoint", "runtimeEnvYAML", "jobId", "submissionMode", "entrypointResources"), str),
        **dict.fromkeys(("entrypointNumCpus", "entrypointNumGpus"), float),
        **dict.fromkeys(("shutdownAfterJobFinishes", "suspend"), bool),
        "rayClusterSpec": RAY_CLUSTER,
        "submitterPodTemplate": POD,
        "submitterConfig": ((), {"backoffLimit": int}),
        "metadata": TEXTS,
        "clusterSelector": TEXTS,
    },
)
OBJECTS = {"rayjob": ("RayJob", RAY_JOB), "raycluster": ("RayCluster", RAY_CLUSTER)}


def misfits(value: Any, kind: Kind, where: str) -> Iterator[str]:
    """Where a tree is not of its kind."""
    if isinstance(kind, tuple):
        required, fields = kind
        if not isinstance(value, dict):
            yield f"{where}: {value!r}"
            return
        yield from (f"{where}.{key}: missing" for key in required if key not in value)
        for key, item in value.items():
            yield from misfits(item, fields[key], f"{where}.{key}") if key in fields else [f"{where}.{key}: unknown"]
    elif isinstance(kind, list):
        items = enumerate(value) if isinstance(value, list) else [("", None)]
        for number, item in items:
            yield from misfits(item, kind[0], f"{where}[{number}]")
    elif isinstance(kind, dict):
        pairs = value.items() if isinstance(value, dict) else [(None, None)]
        yield from (f"{where}.{key}" for key, item in pairs if not isinstance(key, str) or not isinstance(item, str))
    elif type(value) is not kind:
        yield f"{where}: {value!r} is no {kind.__name__}"


@pytest.mark.parametrize("name", OBJECTS)
def test_kuberay_knows_every_field(name: str) -> None:
    kind, fields = OBJECTS[name]
    tree = TREES[name]
    assert tree["apiVersion"] == "ray.io/v1" and tree["kind"] == kind and tree["metadata"]["name"]
    assert list(misfits(tree["spec"], fields, "spec")) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        ({"workerGroupSpec": []}, "spec.workerGroupSpec: unknown"),
        ({"headGroupSpec": {"rayStartParams": {}}}, "spec.headGroupSpec.template: missing"),
        ({"rayVersion": 2.55}, "spec.rayVersion: 2.55 is no str"),
        ({"enableInTreeAutoscaling": "true"}, "spec.enableInTreeAutoscaling: 'true' is no bool"),
    ],
)
def test_the_check_can_fail(change: Mapping[str, Any], line: str) -> None:
    assert line in list(misfits({**TREES["raycluster"]["spec"], **change}, RAY_CLUSTER, "spec"))


def pods() -> Iterator[tuple[str, dict[str, Any]]]:
    """Every pod of the Kubernetes files."""
    for name in OBJECTS:
        spec = TREES[name]["spec"]
        spec = spec.get("rayClusterSpec", spec)
        yield f"{name} head", spec["headGroupSpec"]["template"]["spec"]
        for group in spec["workerGroupSpecs"]:
            yield f"{name} {group['groupName']}", group["template"]["spec"]


@pytest.mark.parametrize(("name", "pod"), list(pods()), ids=lambda value: value if isinstance(value, str) else "")
def test_every_pod_is_confined_sees_the_storage_and_is_given_time(name: str, pod: dict[str, Any]) -> None:
    (container,) = pod["containers"]
    assert pod["securityContext"]["runAsNonRoot"] and f"--uid {pod['securityContext']['runAsUser']}" in DOCKERFILE
    assert container["securityContext"] == {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert pod["terminationGracePeriodSeconds"] >= 60 and container["image"].endswith("@sha256:DIGEST")
    mounted = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounted["/dev/shm"]]["emptyDir"]["medium"] == "Memory"
    assert "persistentVolumeClaim" in volumes[mounted["/shared"]]
    assert {"name": "RAY_JOB_STOP_WAIT_TIME_S", "value": "30"} in container["env"]
    assert container["resources"]["requests"] == container["resources"]["limits"]


def test_all_have_the_version_of_ray_that_is_installed() -> None:
    wanted = re.search(r'ray = \["ray\[train,default\]==([\d.]+)"\]', (ROOT / "pyproject.toml").read_text())
    assert wanted is not None
    assert TREES["rayjob"]["spec"]["rayClusterSpec"]["rayVersion"] == wanted[1]
    assert TREES["raycluster"]["spec"]["rayVersion"] == wanted[1] == locked()["ray"][0]


def test_ray_up_is_as_rays_own_schema_says() -> None:
    ray = pytest.importorskip("ray")
    jsonschema = pytest.importorskip("jsonschema")
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    tree = TREES["up"]
    jsonschema.validate(tree, schema)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**tree, "worker_types": {}}, schema)
    assert tree["head_node_type"] in tree["available_node_types"]
    assert "--env=RAY_JOB_STOP_WAIT_TIME_S=30" in tree["docker"]["run_options"]


def test_the_containers_of_a_laptop_are_confined() -> None:
    tree = TREES["compose"]
    assert tree.keys() == {"name", "x-node", "services", "networks", "volumes"}
    for name, service in tree["services"].items():
        assert service["user"] == "10001:10000" and service["cap_drop"] == ["ALL"] and service["read_only"], name
        assert service["environment"]["RAY_JOB_STOP_WAIT_TIME_S"] == "30" and service["shm_size"], name
        assert service["command"][:2] == ["ray", "start"] and "--block" in service["command"]
        assert {mount["target"]: mount.get("read_only", False) for mount in service["volumes"]} == {
            "/data": True,
            "/shared": False,
        }
    assert tree["services"]["head"]["ports"] == ["127.0.0.1:8265:8265"], "the jobs API has no password"


def commands() -> Iterator[tuple[str, list[str]]]:
    """The words of every ``sslmed train`` of these files, by the file."""
    for path in sorted(CLUSTER.iterdir()):
        text = re.sub(r"\\\n#?\s*", "", path.read_text())
        for words in re.findall(r"sslmed (train [\w.]+[^\n(]*)", text):
            yield path.name, [word for word in words.split() if "=" in word or word.isidentifier()]


def test_every_command_names_a_recipe_and_keys_that_exist() -> None:
    found = list(commands())
    assert {name for name, _ in found} == {"compose.yaml", "rayjob.yaml", "raycluster.yaml", "up.yaml"}
    for name, words in found:
        arguments = parse(words)
        settings = config.load(arguments.config, arguments.overrides)
        assert settings.driver == "ray" and settings.folder.is_relative_to("/shared/runs"), name


def locked() -> dict[str, tuple[str, int]]:
    """(version, number of hashes) of each package of the list."""
    text = (CLUSTER / "requirements.txt").read_text()
    entries = re.findall(
        r"^([\w.-]+)==(\S+?)(?: ; [^\\]*)? \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", text, flags=re.M
    )
    lines = [line for line in text.splitlines() if line and not line.startswith(("#", " "))]
    assert len(entries) == len(lines) > 50
    return {name: (version, hashes.count("sha256:")) for name, version, hashes in entries}


def test_the_list_of_packages_is_what_the_program_asks_for_and_each_has_its_hash() -> None:
    from importlib.metadata import distribution

    requirements = pytest.importorskip("packaging.requirements")
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    asked = [
        *project["dependencies"],
        *project["optional-dependencies"]["ray"],
        "tensorboard",
        "rich",
        "setuptools>=77",
    ]
    found = {name.lower().replace("_", "-"): version for name, (version, _) in locked().items()}
    for text in asked:
        requirement = requirements.Requirement(text)
        assert requirement.specifier.contains(found[requirement.name.lower()]), text
    needs = [requirements.Requirement(text) for text in distribution("ray").requires or ()]
    for need in needs:  # of ray[train,default]
        if need.marker is None or any(need.marker.evaluate({"extra": extra}) for extra in ("train", "default")):
            assert need.name.lower().replace("_", "-") in found, need


def test_the_image_is_pinned_and_runs_as_nobody() -> None:
    assert re.search(r"^ARG BASE$", DOCKERFILE, flags=re.M) and set(
        re.findall(r"^FROM (\S+)", DOCKERFILE, flags=re.M)
    ) == {"${BASE}"}
    check = re.search(r'case "\$\{BASE\}" in .*?esac', DOCKERFILE, flags=re.S)
    assert check is not None
    for base, code in {"python:3.12-slim": 1, "": 1, f"python@sha256:{'0' * 64}": 0}.items():
        done = subprocess.run(["sh", "-c", check[0]], env={"BASE": base, "PATH": "/usr/bin:/bin"}, capture_output=True)
        assert done.returncode == code, base
    installs = re.findall(r"pip (?:install|wheel) (.*?)(?: \\)?$", DOCKERFILE, flags=re.M)
    assert len(installs) == 3 and all("--require-hashes" in words or "--no-deps" in words for words in installs)
    assert (
        re.findall(r"^USER (.*)$", DOCKERFILE, flags=re.M)[-1] == "10001:10000"
        and "RAY_JOB_STOP_WAIT_TIME_S=30" in DOCKERFILE
    )
    copied = {word for line in re.findall(r"^COPY (?!--)(.*)$", DOCKERFILE, flags=re.M) for word in line.split()[:-1]}
    ignored = (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines()
    assert {line.removeprefix("!") for line in ignored if line.startswith("!")} == copied
    assert "*" in ignored and all((ROOT / name).exists() for name in copied)


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    shellcheck = shutil.which("shellcheck", path=str(Path(sys.executable).parent)) or shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed (extra dev)")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_slurm_scripts_save_and_are_queued_again(path: Path) -> None:
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)(?:=(\S+))?$", path.read_text(), flags=re.M))
    assert asked["signal"] == "B:TERM@120" and "requeue" in asked and asked["open-mode"] == "append"
    assert 'scontrol requeue "$SLURM_JOB_ID"' in path.read_text()
    done = subprocess.run(["bash", str(path)], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.startswith("usage: ")
