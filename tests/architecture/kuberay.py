"""What KubeRay v1 documents of a RayCluster, as far as our manifest uses it, as a JSON schema.

Written by hand after its API reference (ray.io/v1: RayCluster, HeadGroupSpec, WorkerGroupSpec) and Kubernetes' PodTemplateSpec:
not the schema of the CRD itself, and narrower. Nothing is allowed that is not listed, so that a misspelled name is found, which
an API server would drop silently.
"""

from __future__ import annotations

from typing import Any

Schema = dict[str, Any]

TEXT: Schema = {"type": "string", "minLength": 1}
NAME: Schema = {"type": "string", "pattern": "^[a-z0-9]([-a-z0-9]*[a-z0-9])?$", "maxLength": 63}
QUANTITY: Schema = {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|Ki|Mi|Gi|Ti)?$"}
START_PARAMS: Schema = {"type": "object", "additionalProperties": {"type": "string"}}  # numbers too are strings


def record(required: dict[str, Schema], optional: dict[str, Schema] | None = None) -> Schema:
    """An object with these fields and no others."""
    return {
        "type": "object",
        "properties": {**required, **(optional or {})},
        "required": list(required),
        "additionalProperties": False,
    }


def some(item: Schema) -> Schema:
    """A list that is not empty."""
    return {"type": "array", "items": item, "minItems": 1}


AMOUNTS: Schema = record({"cpu": QUANTITY, "memory": QUANTITY}, {"nvidia.com/gpu": QUANTITY})

CONTAINER: Schema = record(
    {
        "name": NAME,
        "image": {"type": "string", "pattern": r"^[^\s:]+(/[^\s:]+)*:[\w.-]+$"},
        "resources": record({"requests": AMOUNTS, "limits": AMOUNTS}),
        "securityContext": record(
            {"allowPrivilegeEscalation": {"const": False}, "capabilities": record({"drop": some(TEXT)})},
            {"readOnlyRootFilesystem": {"type": "boolean"}},
        ),
    },
    {
        "env": some(record({"name": TEXT, "value": {"type": "string"}})),
        "volumeMounts": some(record({"name": NAME, "mountPath": TEXT})),
    },
)

TEMPLATE: Schema = record(
    {
        "spec": record(
            {
                "containers": some(CONTAINER),
                "automountServiceAccountToken": {"const": False},
                "securityContext": record(
                    {"runAsNonRoot": {"const": True}, "runAsUser": {"type": "integer", "minimum": 1}},
                    {"fsGroup": {"type": "integer", "minimum": 1}},
                ),
            },
            {"volumes": some(record({"name": NAME, "persistentVolumeClaim": record({"claimName": NAME})}))},
        )
    }
)

HEAD: Schema = record(
    {"rayStartParams": START_PARAMS, "template": TEMPLATE},
    {"serviceType": {"enum": ["ClusterIP", "NodePort", "LoadBalancer"]}, "enableIngress": {"type": "boolean"}},
)

COUNT: Schema = {"type": "integer", "minimum": 0}

WORKERS: Schema = record(
    {
        "groupName": NAME,
        "replicas": COUNT,
        "minReplicas": COUNT,
        "maxReplicas": COUNT,
        "rayStartParams": START_PARAMS,
        "template": TEMPLATE,
    },
    {"numOfHosts": COUNT, "idleTimeoutSeconds": COUNT, "suspend": {"type": "boolean"}},
)

RAY_CLUSTER: Schema = record(
    {
        "apiVersion": {"const": "ray.io/v1"},
        "kind": {"const": "RayCluster"},
        "metadata": record({"name": NAME}, {"namespace": NAME}),
        "spec": record(
            {"rayVersion": TEXT, "headGroupSpec": HEAD, "workerGroupSpecs": some(WORKERS)},
            {"suspend": {"type": "boolean"}, "enableInTreeAutoscaling": {"type": "boolean"}},
        ),
    }
)
