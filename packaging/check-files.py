#!/usr/bin/env python3
"""Reads the files that only other people's machines execute, and holds them to what is in the tree.

    packaging/check-files.py

The workflows' steps are scripts of the tree, with the platforms of the npm packages; the Kubernetes
file passes arguments that the program takes, and is the one in the guide; every image that is named
is one that the release makes.
"""

import json
import os
import re
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[1]
MCPRELAY = Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / "debug/mcprelay"
GUIDES = ROOT / "docs/guides"

# Every script of a workflow, and where it is run before that workflow runs.
RUN_BY = {
    ".ci/run": "it is what runs the tests",
    ".ci/macos": "needs a Mac to mean something; its commands are the test command's",
    ".ci/advisories": "needs GitHub",
    "packaging/build.sh": "takes minutes; run by hand",
    "packaging/archive.sh": "the step `packaging`",
    "packaging/old-root.sh": "needs what build.sh makes; run by hand",
    "packaging/npm.sh": "tests/node/programs.sh",
    "packaging/publish-npm.sh": "needs the registry",
    "packaging/publish-release.sh": "needs GitHub",
}

# Rust's targets as npm's packages are called.
PLATFORMS = {
    "x86_64-unknown-linux-gnu": "linux-x64",
    "aarch64-unknown-linux-gnu": "linux-arm64",
    "x86_64-apple-darwin": "darwin-x64",
    "aarch64-apple-darwin": "darwin-arm64",
}


def read(name):
    return (ROOT / name).read_text()


def steps(workflow):
    return [step for job in workflow["jobs"].values() for step in job["steps"]]


def check_scripts(workflows):
    found = set()
    for step in (step for workflow in workflows for step in steps(workflow) if "run" in step):
        words = [word for word in step["run"].split() if (ROOT / word).is_file()]
        assert len(words) == 1 and "\n" not in step["run"].strip(), f"not one script: {step['run']}"
        assert os.access(ROOT / words[0], os.X_OK), words[0]
        found.add(words[0])
    assert found == set(RUN_BY), f"RUN_BY and the workflows differ: {found ^ set(RUN_BY)}"


def check_platforms(release):
    targets = {entry["target"] for entry in release["jobs"]["programs"]["strategy"]["matrix"]["include"]}
    launchers = json.loads(read("clients/mcprelay/package.json"))["optionalDependencies"]
    named = {name.removeprefix("@mcpctl/mcprelay-") for name in launchers}
    assert {PLATFORMS[target] for target in targets} == named, (targets, named)


def check_images(release):
    job = release["jobs"]["images"]
    images = set(job["strategy"]["matrix"]["image"])
    dockerfile = read("packaging/containers/Dockerfile")
    assert images == set(re.findall(r"^FROM scratch AS (\S+)", dockerfile, re.M)), images
    texts = [read("packaging/kubernetes/sidecar.yaml"), *(page.read_text() for page in GUIDES.glob("*.md"))]
    named = {image for text in texts for image in re.findall(r"ghcr\.io/mcpctl/([a-z-]+)", text)}
    assert named == images, f"the docs name {named}, the release makes {images}"


def takes(*arguments):
    """Whether the program takes these: with --help, it looks at them and does nothing."""
    said = subprocess.run([MCPRELAY, *arguments, "--help"], capture_output=True, text=True)
    assert said.returncode == 0, f"{arguments}: {said.stderr}"


def check_sidecar():
    text = read("packaging/kubernetes/sidecar.yaml")
    assert f"```yaml\n{text}```" in read("docs/guides/many-machines.md"), "the guide shows another sidecar.yaml"
    secret, pod = yaml.safe_load_all(text)
    assert (secret["kind"], pod["kind"]) == ("Secret", "Pod")
    spec = pod["spec"]
    agent, provider = spec["containers"]
    takes(*agent["args"])
    takes(*agent["readinessProbe"]["exec"]["command"][1:])
    source = agent["env"][1]["valueFrom"]["secretKeyRef"]
    assert source["name"] == secret["metadata"]["name"] and source["key"] in secret["stringData"]
    uid = agent["args"][agent["args"].index("--allow-uid") + 1]
    assert uid == str(provider["securityContext"]["runAsUser"])
    mounts = {mount["name"] for container in spec["containers"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in spec["volumes"]}
    version = re.search(r'^version = "(.*)"', read("Cargo.toml"), re.M)[1]
    assert agent["image"].endswith(f":{version}"), agent["image"]


def check_guides():
    """Every YAML of the guides is YAML; gives how many there are."""
    blocks = [block for page in GUIDES.glob("*.md") for block in re.findall(r"```yaml\n(.*?)```", page.read_text(), re.S)]
    for block in blocks:
        list(yaml.safe_load_all(block))
    return len(blocks)


ci, release = (yaml.safe_load(read(f".github/workflows/{name}.yml")) for name in ("ci", "release"))
check_scripts([ci, release])
check_platforms(release)
check_images(release)
check_sidecar()
print(f"workflows, images and the Kubernetes file agree with the tree; {check_guides()} YAML blocks in the guides")
