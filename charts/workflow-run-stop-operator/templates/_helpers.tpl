{{/* Owns the names, labels, checks of values and RBAC rules that several templates use. */}}

{{- define "operator.name" -}}
{{ default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" }}
{{- end }}

{{- define "operator.fullname" -}}
{{- $name := include "operator.name" . -}}
{{- if .Values.fullnameOverride -}}
{{ .Values.fullnameOverride }}
{{- else if contains $name .Release.Name -}}
{{ .Release.Name | trunc 63 | trimSuffix "-" }}
{{- else -}}
{{ printf "%s-%s" .Release.Name $name | trunc 63 | trimSuffix "-" }}
{{- end -}}
{{- end }}

{{/* The labels of all pods of the release: the operator's, and the one of `helm test`. */}}
{{- define "operator.release" -}}
app.kubernetes.io/name: {{ include "operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{/* The labels of the operator's pods. */}}
{{- define "operator.selector" -}}
{{ include "operator.release" . }}
app.kubernetes.io/component: operator
{{- end }}

{{- define "operator.ownLabels" -}}
{{ include "operator.release" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{/* The labels of every object. Further labels are merged as maps, since a duplicate key is invalid YAML. */}}
{{- define "operator.labels" -}}
{{ merge (dict) (default dict .Values.commonLabels) (include "operator.ownLabels" . | fromYaml) | toYaml }}
{{- end }}

{{- define "operator.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ default (include "operator.fullname" .) .Values.serviceAccount.name }}
{{- else -}}
{{ default "default" .Values.serviceAccount.name }}
{{- end -}}
{{- end }}

{{- define "operator.lease" -}}
{{ default (include "operator.fullname" .) .Values.leaseName }}
{{- end }}

{{- define "operator.image" -}}
{{- with .Values.image -}}
{{- if .digest -}}
{{ .repository }}@{{ .digest }}
{{- else -}}
{{ .repository }}:{{ default $.Chart.AppVersion .tag }}
{{- end -}}
{{- end -}}
{{- end }}

{{/* The port of the health endpoints and metrics; the default is that of the operator. */}}
{{- define "operator.port" -}}
{{ default "[::]:8080" .Values.httpAddr | splitList ":" | last }}
{{- end }}

{{/* The seconds of a duration such as 40s or 1m30s; the schema rejects other formats. */}}
{{- define "operator.seconds" -}}
{{- $minutes := regexFind "[0-9]+m" . | trimSuffix "m" | default "0" | int -}}
{{- $seconds := regexFind "[0-9]+s" . | trimSuffix "s" | default "0" | int -}}
{{ add (mul 60 $minutes) $seconds }}
{{- end }}

{{/* Checks that the schema cannot express, such as those of several values. */}}
{{- define "operator.checks" -}}
{{- with .Values -}}
{{- range $name := list "requestTimeout" "settleTime" "drainTimeout" }}
{{- if gt (include "operator.seconds" (get $.Values $name) | int) 3600 }}
{{- fail (printf "%s (%s) is longer than an hour" $name (get $.Values $name)) }}
{{- end }}
{{- end }}
{{- if le (include "operator.seconds" .drainTimeout | int) (include "operator.seconds" .requestTimeout | int) }}
{{- fail (printf "drainTimeout (%s) has to be longer than requestTimeout (%s): requests in flight must be answered and recorded within it" .drainTimeout .requestTimeout) }}
{{- end }}
{{- if and (not .leaderElect) .leaseName }}
{{- fail "leaseName is set, but leaderElect is false: there is no Lease" }}
{{- end }}
{{- $own := include "operator.ownLabels" $ | fromYaml }}
{{- range $name := list "commonLabels" "deploymentLabels" "podLabels" }}
{{- range $label := keys (get $.Values $name | default dict) }}
{{- if or (hasKey $own $label) (eq $label "app.kubernetes.io/component") }}
{{- fail (printf "%s: the chart itself sets the label %s" $name $label) }}
{{- end }}
{{- end }}
{{- end }}
{{- if and .caBundle.configMap .caBundle.secret }}
{{- fail "caBundle.configMap and caBundle.secret are both set: choose one" }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled .metrics.podMonitor.enabled }}
{{- fail "metrics.serviceMonitor and metrics.podMonitor are both enabled: each pod would be scraped twice" }}
{{- end }}
{{- if and .metrics.serviceMonitor.enabled (not .metrics.service.enabled) }}
{{- fail "metrics.serviceMonitor.enabled needs metrics.service.enabled: a ServiceMonitor scrapes a Service" }}
{{- end }}
{{- end }}
{{- end }}

{{/* The RBAC rules of the operator, for a ClusterRole or a Role in each namespace. */}}
{{- define "operator.rules" -}}
- apiGroups: [workflow.amperity.com]
  resources: [workflowrunstops]
  # delete is for ttlSecondsAfterFinished.
  verbs: [get, list, watch, delete]
- apiGroups: [workflow.amperity.com]
  resources: [workflowrunstops/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [secrets]
  {{- with .Values.secrets.names }}
  resourceNames:
    {{- toYaml . | nindent 4 }}
  {{- end }}
  verbs: [get]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end }}

{{/* Scheduling and image pull secrets of the pods. */}}
{{- define "operator.scheduling" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.nodeSelector }}
nodeSelector:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.tolerations }}
tolerations:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.affinity }}
affinity:
  {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .Values.priorityClassName }}
priorityClassName: {{ . | quote }}
{{- end }}
{{- end }}
