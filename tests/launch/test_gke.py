"""launch/gke.yaml: filled in, a JobSet by its schema, its job one by that of Kubernetes."""

from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "launch"
ARGUMENTS = ["--config", "my configs/a.py", "--workdir", 'gs://b/it\'s "x" \\ $(HOME) #: [',
             "--config.data.tokenizer="]
SETTINGS = {"NAME": "albef", "IMAGE": "docker.pkg.dev/p/albef", "TOPOLOGY": "4x8"}

# The fields of jobset.x-k8s.io/v1alpha2 that are used; a slip of the pen is an unknown field.
JOBSET = yaml.safe_load("""
type: object
additionalProperties: false
required: [apiVersion, kind, metadata, spec]
properties:
  apiVersion: {const: jobset.x-k8s.io/v1alpha2}
  kind: {const: JobSet}
  metadata:
    type: object
    required: [name]
    properties:
      name: {type: string, pattern: '^[a-z]([-a-z0-9]*[a-z0-9])?$'}
      annotations: {type: object, additionalProperties: {type: string}}
  spec:
    type: object
    additionalProperties: false
    required: [replicatedJobs]
    properties:
      network:
        type: object
        additionalProperties: false
        properties:
          enableDNSHostnames: {type: boolean}
          publishNotReadyAddresses: {type: boolean}
          subdomain: {type: string}
      failurePolicy:
        type: object
        additionalProperties: false
        properties:
          maxRestarts: {type: integer, minimum: 0}
          rules:
            type: array
            items:
              type: object
              additionalProperties: false
              required: [name, action]
              properties:
                name: {type: string, pattern: '^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$'}
                action: {enum: [FailJobSet, RestartJobSet, RestartJobSetAndIgnoreMaxRestarts]}
                targetReplicatedJobs: {type: array, items: {type: string}}
                onJobFailureReasons:
                  type: array
                  items: {enum: [BackoffLimitExceeded, DeadlineExceeded, FailedIndexes,
                                 MaxFailedIndexesExceeded, PodFailurePolicy]}
      replicatedJobs:
        type: array
        items:
          type: object
          additionalProperties: false
          required: [name, template]
          properties:
            name: {type: string, pattern: '^[a-z]([-a-z0-9]*[a-z0-9])?$'}
            replicas: {type: integer, minimum: 1}
            template: {type: object, required: [spec]}
""")


def filled(shell, *arguments, **variables):
    code, out, err = shell.run("gke.sh", *arguments, "--dry-run", **SETTINGS | variables)
    assert code == 0, err
    return yaml.safe_load(out)


def job_of(jobset):
    return jobset["spec"]["replicatedJobs"][0]["template"]


def test_is_a_jobset(shell):
    jsonschema.validate(filled(shell, *ARGUMENTS), JOBSET)


def test_its_job_is_one_of_kubernetes(shell):
    job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "albef"},
           **job_of(filled(shell, *ARGUMENTS))}
    kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)
    job["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, kubernetes_validate.latest_version(), strict=True)


def test_machines_follow_the_topology(shell):
    jobset = filled(shell, *ARGUMENTS, SLICES="2")
    job = job_of(jobset)["spec"]
    pod = job["template"]["spec"]
    assert jobset["spec"]["replicatedJobs"][0]["replicas"] == 2
    assert job["completions"] == job["parallelism"] == 8  # 32 chips, four in a machine
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x8"}
    assert pod["containers"][0]["resources"]["limits"] == {"google.com/tpu": 4}
    small = filled(shell, *ARGUMENTS, TOPOLOGY="2x4", CHIPS="8")
    assert job_of(small)["spec"]["completions"] == 1


def test_arguments_survive(shell):
    container = job_of(filled(shell, *ARGUMENTS))["spec"]["template"]["spec"]["containers"][0]
    assert [word.replace("$$", "$") for word in container["args"]] == ARGUMENTS
    assert "$$(HOME)" in container["args"][3]  # or Kubernetes would put a variable there
    assert container["command"] == ["launch/keep_running.sh", "albef", "train"]


def test_failures_start_it_again_and_mistakes_do_not(shell):
    jobset = filled(shell, *ARGUMENTS)
    job = job_of(jobset)["spec"]
    assert jobset["spec"]["failurePolicy"]["maxRestarts"] > 0 and job["backoffLimit"] == 0
    assert job["podFailurePolicy"]["rules"][0]["onExitCodes"]["values"] == [2]
    assert job["template"]["spec"]["restartPolicy"] == "Never"
    assert job["template"]["spec"]["terminationGracePeriodSeconds"] >= 120


def test_is_sent_to_kubectl(shell):
    shell.program("kubectl", "open('sent', 'w').write(sys.stdin.read())")
    code, _, err = shell.run("gke.sh", *ARGUMENTS, **SETTINGS)
    assert code == 0, err
    assert shell.calls() == [["kubectl", "apply", "-f", "-"]]
    assert yaml.safe_load((shell.folder / "sent").read_text()) == filled(shell, *ARGUMENTS)


@pytest.mark.parametrize("variables, sentence", [
    ({"TOPOLOGY": "4"}, "TOPOLOGY is '4'; give it as 4x4 or 4x4x4"),
    ({"CHIPS": "5"}, "TOPOLOGY 4x8 has 32 chips, not a multiple of CHIPS=5"),
    ({"SLICES": "0"}, "SLICES is '0'; give a number of slices")])
def test_wrong_settings_are_one_sentence(shell, variables, sentence):
    code, out, err = shell.run("gke.sh", *ARGUMENTS, "--dry-run", **SETTINGS | variables)
    assert (code, out, err) == (2, "", f"gke.sh: {sentence}\n")


def test_every_value_to_fill_in_is_documented():
    text = (LAUNCH / "gke.sh").read_text()
    for name in ("NAME", "IMAGE", "TOPOLOGY", "ACCELERATOR", "CHIPS", "SLICES", "SERVICE_ACCOUNT",
                 "COMPILE_CACHE"):
        assert f"${{{name}}}" in (LAUNCH / "gke.yaml").read_text()
        assert f"\n#   {name} " in text
