"""Field numbers of the Kubernetes messages that clients send us: plain data for `protobuf`.

One paragraph a message: `package.Message:` and its fields, each `number name type`, separated by `;`. Types: s string,
b bool, i integer, f double, y bytes, t Time, u MicroTime, d Duration, q Quantity, o IntOrString, r raw JSON, Ls list
of strings in a message, else a message. Prefixes: `*` pointer (zero is a value), `!` written even if zero, `~` inlined
into the parent, `[]` list, `{}` map. Source: generated.proto and the Go types of k8s.io/api and k8s.io/apimachinery
(1.36); numbers never change upstream.
"""

FIELDS = """
core.Namespace: 1 metadata meta.ObjectMeta; 2 spec core.NamespaceSpec; 3 status core.NamespaceStatus
core.ConfigMap: 1 metadata meta.ObjectMeta; 4 immutable *b; 2 data {}s; 3 binaryData {}y
core.Secret: 1 metadata meta.ObjectMeta; 5 immutable *b; 2 data {}y; 4 stringData {}s; 3 type s
core.ServiceAccount: 1 metadata meta.ObjectMeta; 2 secrets []core.ObjectReference; 3 imagePullSecrets
  []core.LocalObjectReference; 4 automountServiceAccountToken *b
core.PersistentVolumeClaim: 1 metadata meta.ObjectMeta; 2 spec core.PersistentVolumeClaimSpec; 3 status
  core.PersistentVolumeClaimStatus
core.PersistentVolume: 1 metadata meta.ObjectMeta; 2 spec core.PersistentVolumeSpec; 3 status
  core.PersistentVolumeStatus
core.Event: 1 metadata !meta.ObjectMeta; 2 involvedObject !core.ObjectReference; 3 reason s; 4 message s; 5 source
  core.EventSource; 6 firstTimestamp t; 7 lastTimestamp t; 8 count i; 9 type s; 10 eventTime u; 11 series
  *core.EventSeries; 12 action s; 13 related *core.ObjectReference; 14 reportingComponent !s; 15 reportingInstance !s
core.Node: 1 metadata meta.ObjectMeta; 2 spec core.NodeSpec; 3 status core.NodeStatus
core.ResourceQuota: 1 metadata meta.ObjectMeta; 2 spec core.ResourceQuotaSpec; 3 status core.ResourceQuotaStatus
core.LimitRange: 1 metadata meta.ObjectMeta; 2 spec core.LimitRangeSpec
core.Service: 1 metadata meta.ObjectMeta; 2 spec core.ServiceSpec; 3 status core.ServiceStatus
rbac.Role: 1 metadata meta.ObjectMeta; 2 rules ![]rbac.PolicyRule
rbac.ClusterRole: 1 metadata meta.ObjectMeta; 2 rules ![]rbac.PolicyRule; 3 aggregationRule *rbac.AggregationRule
rbac.RoleBinding: 1 metadata meta.ObjectMeta; 2 subjects []rbac.Subject; 3 roleRef !rbac.RoleRef
rbac.ClusterRoleBinding: 1 metadata meta.ObjectMeta; 2 subjects []rbac.Subject; 3 roleRef !rbac.RoleRef
authn.TokenRequest: 1 metadata meta.ObjectMeta; 2 spec !authn.TokenRequestSpec; 3 status authn.TokenRequestStatus
authn.TokenReview: 1 metadata meta.ObjectMeta; 2 spec !authn.TokenReviewSpec; 3 status authn.TokenReviewStatus
authn.SelfSubjectReview: 1 metadata meta.ObjectMeta; 2 status authn.SelfSubjectReviewStatus
authz.SubjectAccessReview: 1 metadata meta.ObjectMeta; 2 spec !authz.SubjectAccessReviewSpec; 3 status
  authz.SubjectAccessReviewStatus
authz.SelfSubjectAccessReview: 1 metadata meta.ObjectMeta; 2 spec !authz.SelfSubjectAccessReviewSpec; 3 status
  authz.SubjectAccessReviewStatus
authz.SelfSubjectRulesReview: 1 metadata meta.ObjectMeta; 2 spec !authz.SelfSubjectRulesReviewSpec; 3 status
  authz.SubjectRulesReviewStatus
authz.LocalSubjectAccessReview: 1 metadata meta.ObjectMeta; 2 spec !authz.SubjectAccessReviewSpec; 3 status
  authz.SubjectAccessReviewStatus
storage.StorageClass: 1 metadata meta.ObjectMeta; 2 provisioner !s; 3 parameters {}s; 4 reclaimPolicy *s; 5
  mountOptions []s; 6 allowVolumeExpansion *b; 7 volumeBindingMode *s; 8 allowedTopologies []core.TopologySelectorTerm
events.Event: 1 metadata !meta.ObjectMeta; 2 eventTime !u; 3 series *events.EventSeries; 4 reportingController s; 5
  reportingInstance s; 6 action s; 7 reason s; 8 regarding core.ObjectReference; 9 related *core.ObjectReference; 10
  note s; 11 type s; 12 deprecatedSource core.EventSource; 13 deprecatedFirstTimestamp t; 14 deprecatedLastTimestamp
  t; 15 deprecatedCount i
coord.Lease: 1 metadata meta.ObjectMeta; 2 spec coord.LeaseSpec
policy.Eviction: 1 metadata meta.ObjectMeta; 2 deleteOptions *meta.DeleteOptions
policy.PodDisruptionBudget: 1 metadata meta.ObjectMeta; 2 spec policy.PodDisruptionBudgetSpec; 3 status
  policy.PodDisruptionBudgetStatus
sched.PriorityClass: 1 metadata meta.ObjectMeta; 2 value !i; 3 globalDefault b; 4 description s; 5 preemptionPolicy *s
meta.DeleteOptions: 1 gracePeriodSeconds *i; 2 preconditions *meta.Preconditions; 3 orphanDependents *b; 4
  propagationPolicy *s; 5 dryRun []s; 6 ignoreStoreReadErrorWithClusterBreakingPotential *b
apps.ControllerRevision: 1 metadata meta.ObjectMeta; 2 data !r; 3 revision !i
meta.ObjectMeta: 1 name s; 2 generateName s; 3 namespace s; 4 selfLink s; 5 uid s; 6 resourceVersion s; 7 generation
  i; 8 creationTimestamp t; 9 deletionTimestamp *t; 10 deletionGracePeriodSeconds *i; 11 labels {}s; 12 annotations
  {}s; 13 ownerReferences []meta.OwnerReference; 14 finalizers []s; 17 managedFields []meta.ManagedFieldsEntry
core.NamespaceSpec: 1 finalizers []s
core.NamespaceStatus: 1 phase s; 2 conditions []core.NamespaceCondition
core.ObjectReference: 1 kind s; 2 namespace s; 3 name s; 4 uid s; 5 apiVersion s; 6 resourceVersion s; 7 fieldPath s
core.LocalObjectReference: 1 name s
core.PersistentVolumeClaimSpec: 1 accessModes []s; 4 selector *meta.LabelSelector; 2 resources
  core.VolumeResourceRequirements; 3 volumeName s; 5 storageClassName *s; 6 volumeMode *s; 7 dataSource
  *core.TypedLocalObjectReference; 8 dataSourceRef *core.TypedObjectReference; 9 volumeAttributesClassName *s
core.PersistentVolumeClaimStatus: 1 phase s; 2 accessModes []s; 3 capacity {}q; 4 conditions
  []core.PersistentVolumeClaimCondition; 5 allocatedResources {}q; 7 allocatedResourceStatuses {}s; 8
  currentVolumeAttributesClassName *s; 9 modifyVolumeStatus *core.ModifyVolumeStatus; 10 healthStatus
  *core.VolumeHealthStatus
core.PersistentVolumeSpec: 1 capacity {}q; 2 persistentVolumeSource ~core.PersistentVolumeSource; 3 accessModes []s; 4
  claimRef *core.ObjectReference; 5 persistentVolumeReclaimPolicy s; 6 storageClassName s; 7 mountOptions []s; 8
  volumeMode *s; 9 nodeAffinity *core.VolumeNodeAffinity; 10 volumeAttributesClassName *s
core.PersistentVolumeStatus: 1 phase s; 2 message s; 3 reason s; 4 lastPhaseTransitionTime *t
core.EventSource: 1 component s; 2 host s
core.EventSeries: 1 count i; 2 lastObservedTime u
core.NodeSpec: 1 podCIDR s; 7 podCIDRs []s; 3 providerID s; 4 unschedulable b; 5 taints []core.Taint; 6 configSource
  *core.NodeConfigSource; 2 externalID s; 8 podPreemptionPolicy *core.NodePodPreemptionPolicy
core.NodeStatus: 1 capacity {}q; 2 allocatable {}q; 3 phase s; 4 conditions []core.NodeCondition; 5 addresses
  []core.NodeAddress; 6 daemonEndpoints core.NodeDaemonEndpoints; 7 nodeInfo core.NodeSystemInfo; 8 images
  []core.ContainerImage; 9 volumesInUse []s; 10 volumesAttached []core.AttachedVolume; 11 config
  *core.NodeConfigStatus; 12 runtimeHandlers []core.NodeRuntimeHandler; 13 features *core.NodeFeatures; 14
  declaredFeatures []s
core.ResourceQuotaSpec: 1 hard {}q; 2 scopes []s; 3 scopeSelector *core.ScopeSelector
core.ResourceQuotaStatus: 1 hard {}q; 2 used {}q
core.LimitRangeSpec: 1 limits ![]core.LimitRangeItem
core.ServiceSpec: 1 ports []core.ServicePort; 2 selector {}s; 3 clusterIP s; 18 clusterIPs []s; 4 type s; 5
  externalIPs []s; 7 sessionAffinity s; 8 loadBalancerIP s; 9 loadBalancerSourceRanges []s; 10 externalName s; 11
  externalTrafficPolicy s; 12 healthCheckNodePort i; 13 publishNotReadyAddresses b; 14 sessionAffinityConfig
  *core.SessionAffinityConfig; 19 ipFamilies []s; 17 ipFamilyPolicy *s; 20 allocateLoadBalancerNodePorts *b; 21
  loadBalancerClass *s; 22 internalTrafficPolicy *s; 23 trafficDistribution *s
core.ServiceStatus: 1 loadBalancer core.LoadBalancerStatus; 2 conditions []meta.Condition
rbac.PolicyRule: 1 verbs ![]s; 2 apiGroups []s; 3 resources []s; 4 resourceNames []s; 5 nonResourceURLs []s
rbac.AggregationRule: 1 clusterRoleSelectors []meta.LabelSelector
rbac.Subject: 1 kind !s; 2 apiGroup s; 3 name !s; 4 namespace s
rbac.RoleRef: 1 apiGroup !s; 2 kind !s; 3 name !s
authn.TokenRequestSpec: 1 audiences ![]s; 4 expirationSeconds *i; 3 boundObjectRef *authn.BoundObjectReference; 5
  attestations {}Ls
authn.TokenRequestStatus: 1 token !s; 2 expirationTimestamp !t
authn.TokenReviewSpec: 1 token s; 2 audiences []s
authn.TokenReviewStatus: 1 authenticated b; 2 user authn.UserInfo; 4 audiences []s; 3 error s
authn.SelfSubjectReviewStatus: 1 userInfo authn.UserInfo
authz.SubjectAccessReviewSpec: 1 resourceAttributes *authz.ResourceAttributes; 2 nonResourceAttributes
  *authz.NonResourceAttributes; 3 user s; 4 groups []s; 5 extra {}Ls; 6 uid s
authz.SubjectAccessReviewStatus: 1 allowed !b; 4 denied b; 2 reason s; 3 evaluationError s
authz.SelfSubjectAccessReviewSpec: 1 resourceAttributes *authz.ResourceAttributes; 2 nonResourceAttributes
  *authz.NonResourceAttributes
authz.SelfSubjectRulesReviewSpec: 1 namespace s
authz.SubjectRulesReviewStatus: 1 resourceRules ![]authz.ResourceRule; 2 nonResourceRules ![]authz.NonResourceRule; 3
  incomplete !b; 4 evaluationError s
core.TopologySelectorTerm: 1 matchLabelExpressions []core.TopologySelectorLabelRequirement
events.EventSeries: 1 count !i; 2 lastObservedTime !u
coord.LeaseSpec: 1 holderIdentity *s; 2 leaseDurationSeconds *i; 3 acquireTime *u; 4 renewTime *u; 5 leaseTransitions
  *i; 6 strategy *s; 7 preferredHolder *s
policy.PodDisruptionBudgetSpec: 1 minAvailable *o; 2 selector *meta.LabelSelector; 3 maxUnavailable *o; 4
  unhealthyPodEvictionPolicy *s
policy.PodDisruptionBudgetStatus: 1 observedGeneration i; 2 disruptedPods {}t; 3 disruptionsAllowed !i; 4
  currentHealthy !i; 5 desiredHealthy !i; 6 expectedPods !i; 7 conditions []meta.Condition
meta.Preconditions: 1 uid *s; 2 resourceVersion *s
meta.OwnerReference: 5 apiVersion !s; 1 kind !s; 3 name !s; 4 uid !s; 6 controller *b; 7 blockOwnerDeletion *b
meta.ManagedFieldsEntry: 1 manager s; 2 operation s; 3 apiVersion s; 4 time *t; 6 fieldsType s; 7 fieldsV1 *r; 8
  subresource s
core.NamespaceCondition: 1 type !s; 2 status !s; 4 lastTransitionTime t; 5 reason s; 6 message s
meta.LabelSelector: 1 matchLabels {}s; 2 matchExpressions []meta.LabelSelectorRequirement
core.VolumeResourceRequirements: 1 limits {}q; 2 requests {}q
core.TypedLocalObjectReference: 1 apiGroup *s; 2 kind !s; 3 name !s
core.TypedObjectReference: 1 apiGroup *s; 2 kind !s; 3 name !s; 4 namespace *s
core.PersistentVolumeClaimCondition: 1 type !s; 2 status !s; 3 lastProbeTime t; 4 lastTransitionTime t; 5 reason s; 6
  message s
core.ModifyVolumeStatus: 1 targetVolumeAttributesClassName s; 2 status !s
core.VolumeHealthStatus: 1 healthConditions []core.VolumeHealthCondition; 2 lastTransitionTime t
core.PersistentVolumeSource: 1 gcePersistentDisk *core.GCEPersistentDiskVolumeSource; 2 awsElasticBlockStore
  *core.AWSElasticBlockStoreVolumeSource; 3 hostPath *core.HostPathVolumeSource; 4 glusterfs
  *core.GlusterfsPersistentVolumeSource; 5 nfs *core.NFSVolumeSource; 6 rbd *core.RBDPersistentVolumeSource; 7 iscsi
  *core.ISCSIPersistentVolumeSource; 8 cinder *core.CinderPersistentVolumeSource; 9 cephfs
  *core.CephFSPersistentVolumeSource; 10 fc *core.FCVolumeSource; 11 flocker *core.FlockerVolumeSource; 12 flexVolume
  *core.FlexPersistentVolumeSource; 13 azureFile *core.AzureFilePersistentVolumeSource; 14 vsphereVolume
  *core.VsphereVirtualDiskVolumeSource; 15 quobyte *core.QuobyteVolumeSource; 16 azureDisk
  *core.AzureDiskVolumeSource; 17 photonPersistentDisk *core.PhotonPersistentDiskVolumeSource; 18 portworxVolume
  *core.PortworxVolumeSource; 19 scaleIO *core.ScaleIOPersistentVolumeSource; 20 local *core.LocalVolumeSource; 21
  storageos *core.StorageOSPersistentVolumeSource; 22 csi *core.CSIPersistentVolumeSource
core.VolumeNodeAffinity: 1 required *core.NodeSelector
core.Taint: 1 key !s; 2 value s; 3 effect !s; 4 timeAdded *t
core.NodeConfigSource: 2 configMap *core.ConfigMapNodeConfigSource
core.NodePodPreemptionPolicy: 1 disableResizePreemption []s
core.NodeCondition: 1 type !s; 2 status !s; 3 lastHeartbeatTime t; 4 lastTransitionTime t; 5 reason s; 6 message s
core.NodeAddress: 1 type !s; 2 address !s
core.NodeDaemonEndpoints: 1 kubeletEndpoint core.DaemonEndpoint
core.NodeSystemInfo: 1 machineID !s; 2 systemUUID !s; 3 bootID !s; 4 kernelVersion !s; 5 osImage !s; 6
  containerRuntimeVersion !s; 7 kubeletVersion !s; 8 kubeProxyVersion !s; 9 operatingSystem !s; 10 architecture !s; 11
  swap *core.NodeSwapStatus
core.ContainerImage: 1 names ![]s; 2 sizeBytes i
core.AttachedVolume: 1 name !s; 2 devicePath !s
core.NodeConfigStatus: 1 assigned *core.NodeConfigSource; 2 active *core.NodeConfigSource; 3 lastKnownGood
  *core.NodeConfigSource; 4 error s
core.NodeRuntimeHandler: 1 name !s; 2 features *core.NodeRuntimeHandlerFeatures
core.NodeFeatures: 1 supplementalGroupsPolicy *b
core.ScopeSelector: 1 matchExpressions []core.ScopedResourceSelectorRequirement
core.LimitRangeItem: 1 type !s; 2 max {}q; 3 min {}q; 4 default {}q; 5 defaultRequest {}q; 6 maxLimitRequestRatio {}q
core.ServicePort: 1 name s; 2 protocol s; 6 appProtocol *s; 3 port !i; 4 targetPort o; 5 nodePort i
core.SessionAffinityConfig: 1 clientIP *core.ClientIPConfig
core.LoadBalancerStatus: 1 ingress []core.LoadBalancerIngress
meta.Condition: 1 type !s; 2 status !s; 3 observedGeneration i; 4 lastTransitionTime !t; 5 reason !s; 6 message !s
authn.BoundObjectReference: 1 kind s; 2 apiVersion s; 3 name s; 4 uid s
authn.UserInfo: 1 username s; 2 uid s; 3 groups []s; 4 extra {}Ls
authz.ResourceAttributes: 1 namespace s; 2 verb s; 3 group s; 4 version s; 5 resource s; 6 subresource s; 7 name s; 8
  fieldSelector *authz.FieldSelectorAttributes; 9 labelSelector *authz.LabelSelectorAttributes
authz.NonResourceAttributes: 1 path s; 2 verb s
authz.ResourceRule: 1 verbs ![]s; 2 apiGroups []s; 3 resources []s; 4 resourceNames []s
authz.NonResourceRule: 1 verbs ![]s; 2 nonResourceURLs []s
core.TopologySelectorLabelRequirement: 1 key !s; 2 values ![]s
meta.LabelSelectorRequirement: 1 key !s; 2 operator !s; 3 values []s
core.VolumeHealthCondition: 1 status !s; 2 reason !s; 3 message s
core.GCEPersistentDiskVolumeSource: 1 pdName !s; 2 fsType s; 3 partition i; 4 readOnly b
core.AWSElasticBlockStoreVolumeSource: 1 volumeID !s; 2 fsType s; 3 partition i; 4 readOnly b
core.HostPathVolumeSource: 1 path !s; 2 type *s
core.GlusterfsPersistentVolumeSource: 1 endpoints !s; 2 path !s; 3 readOnly b; 4 endpointsNamespace *s
core.NFSVolumeSource: 1 server !s; 2 path !s; 3 readOnly b
core.RBDPersistentVolumeSource: 1 monitors ![]s; 2 image !s; 3 fsType s; 4 pool s; 5 user s; 6 keyring s; 7 secretRef
  *core.SecretReference; 8 readOnly b
core.ISCSIPersistentVolumeSource: 1 targetPortal !s; 2 iqn !s; 3 lun !i; 4 iscsiInterface s; 5 fsType s; 6 readOnly b;
  7 portals []s; 8 chapAuthDiscovery b; 11 chapAuthSession b; 10 secretRef *core.SecretReference; 12 initiatorName *s
core.CinderPersistentVolumeSource: 1 volumeID !s; 2 fsType s; 3 readOnly b; 4 secretRef *core.SecretReference
core.CephFSPersistentVolumeSource: 1 monitors ![]s; 2 path s; 3 user s; 4 secretFile s; 5 secretRef
  *core.SecretReference; 6 readOnly b
core.FCVolumeSource: 1 targetWWNs []s; 2 lun *i; 3 fsType s; 4 readOnly b; 5 wwids []s
core.FlockerVolumeSource: 1 datasetName s; 2 datasetUUID s
core.FlexPersistentVolumeSource: 1 driver !s; 2 fsType s; 3 secretRef *core.SecretReference; 4 readOnly b; 5 options
  {}s
core.AzureFilePersistentVolumeSource: 1 secretName !s; 2 shareName !s; 3 readOnly b; 4 secretNamespace *s
core.VsphereVirtualDiskVolumeSource: 1 volumePath !s; 2 fsType s; 3 storagePolicyName s; 4 storagePolicyID s
core.QuobyteVolumeSource: 1 registry !s; 2 volume !s; 3 readOnly b; 4 user s; 5 group s; 6 tenant s
core.AzureDiskVolumeSource: 1 diskName !s; 2 diskURI !s; 3 cachingMode *s; 4 fsType *s; 5 readOnly *b; 6 kind *s
core.PhotonPersistentDiskVolumeSource: 1 pdID !s; 2 fsType s
core.PortworxVolumeSource: 1 volumeID !s; 2 fsType s; 3 readOnly b
core.ScaleIOPersistentVolumeSource: 1 gateway !s; 2 system !s; 3 secretRef *core.SecretReference; 4 sslEnabled b; 5
  protectionDomain s; 6 storagePool s; 7 storageMode s; 8 volumeName s; 9 fsType s; 10 readOnly b
core.LocalVolumeSource: 1 path !s; 2 fsType *s
core.StorageOSPersistentVolumeSource: 1 volumeName s; 2 volumeNamespace s; 3 fsType s; 4 readOnly b; 5 secretRef
  *core.ObjectReference
core.CSIPersistentVolumeSource: 1 driver !s; 2 volumeHandle !s; 3 readOnly b; 4 fsType s; 5 volumeAttributes {}s; 6
  controllerPublishSecretRef *core.SecretReference; 7 nodeStageSecretRef *core.SecretReference; 8 nodePublishSecretRef
  *core.SecretReference; 9 controllerExpandSecretRef *core.SecretReference; 10 nodeExpandSecretRef
  *core.SecretReference
core.NodeSelector: 1 nodeSelectorTerms ![]core.NodeSelectorTerm
core.ConfigMapNodeConfigSource: 1 namespace !s; 2 name !s; 3 uid s; 4 resourceVersion s; 5 kubeletConfigKey !s
core.DaemonEndpoint: 1 Port !i
core.NodeSwapStatus: 1 capacity *i
core.NodeRuntimeHandlerFeatures: 1 recursiveReadOnlyMounts *b; 2 userNamespaces *b
core.ScopedResourceSelectorRequirement: 1 scopeName !s; 2 operator !s; 3 values []s
core.ClientIPConfig: 1 timeoutSeconds *i
core.LoadBalancerIngress: 1 ip s; 2 hostname s; 3 ipMode *s; 4 ports []core.PortStatus
authz.FieldSelectorAttributes: 1 rawSelector s; 2 requirements []meta.FieldSelectorRequirement
authz.LabelSelectorAttributes: 1 rawSelector s; 2 requirements []meta.LabelSelectorRequirement
core.SecretReference: 1 name s; 2 namespace s
core.NodeSelectorTerm: 1 matchExpressions []core.NodeSelectorRequirement; 2 matchFields []core.NodeSelectorRequirement
core.PortStatus: 1 port !i; 2 protocol !s; 3 error *s
meta.FieldSelectorRequirement: 1 key !s; 2 operator !s; 3 values []s
core.NodeSelectorRequirement: 1 key !s; 2 operator !s; 3 values []s
"""
