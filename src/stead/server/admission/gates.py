"""The feature gates of KubeVirt: stages, defaults, and which are on for a given configuration.

Stages are those of main at the recorded commit (recordings `gates`, `gates-disabled`, notes 36-37): Alpha is off unless
listed, Beta is on unless disabled, GA is always on. Unknown names may be listed and do nothing. Pure.
"""

from __future__ import annotations

from typing import Any

ALPHA = frozenset((
    "AlignCPUs", "CPUManager", "ConfigurableHypervisor", "ContainerPathVolumes", "CrossArchitectureVirtualization",
    "DownwardMetrics", "EnableVirtioFsStorageVolumes", "ExperimentalIgnitionSupport", "FirmwareAutoSelection",
    "GraceIOVirtualization", "HostDevices", "HostDisk", "HotplugVolumes", "HypervStrictCheck", "IOMMUFD",
    "IncrementalBackup", "MigrationDowntimeTuning", "MigrationStallDetection", "NetworkDevicesWithDRA",
    "OCIExport", "ObjectGraph", "PCINUMAAwareTopology", "PersistentReservation", "Plugins", "PortRangesSpec",
    "ReservedOverheadMemlock", "Root", "Sidecar", "UtilityVolumes", "VGPULiveMigration", "VMStatsCollector",
    "VSOCK", "WorkloadEncryptionTDX",
))  # fmt: skip

BETA = frozenset((
    "DecentralizedLiveMigration", "DeclarativeHotplugVolumes", "ExternalNetResourceInjection", "GPUsWithDRA",
    "HostDevicesWithDRA", "ImageVolume", "KubevirtSeccompProfile", "NodeRestriction", "OptOutRoleAggregation",
    "PasstBinding", "PodSecondaryInterfaceNamingUpgrade", "RebootPolicy", "Snapshot", "Template",
    "WorkloadEncryptionSEV",
))  # fmt: skip

GENERAL = frozenset((
    "AutoResourceLimitsGate", "BochsDisplayForEFIGuests", "CPUNodeDiscovery", "ClusterProfiler",
    "CommonInstancetypesDeploymentGate", "DisableCustomSELinuxPolicy", "DynamicPodInterfaceNaming",
    "EnableVirtioFsConfigVolumes", "ExpandDisks", "GPU", "HotplugNICs", "InstancetypeReferencePolicy",
    "LibvirtHooksServerAndClient", "LiveMigration", "LiveUpdateNADRef", "MigrationPriorityQueue", "NUMA",
    "NetworkBindingPlugins", "NonRoot", "PSA", "PanicDevices", "SRIOVLiveMigration", "SecureExecution", "VMExport",
    "VMLiveUpdateFeatures", "VMPersistentState", "VideoConfig", "VmiMemoryOverheadReport", "VolumeMigration",
    "VolumesUpdateStrategy",
))  # fmt: skip


def enabled_gates(configuration: dict[str, Any]) -> frozenset[str]:
    """Names of the gates that are on under `spec.configuration` of the KubeVirt object."""
    developer = configuration.get("developerConfiguration") or {}
    asked = frozenset(developer.get("featureGates") or ())
    disabled = frozenset(developer.get("disabledFeatureGates") or ())
    return GENERAL | ((BETA | (asked & ALPHA)) - disabled)
