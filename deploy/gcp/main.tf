# A group of spot machines that train the jobs of one bucket. The group replaces a
# preempted machine, and the new one resumes every unfinished job.

terraform {
  required_version = ">= 1.5"
  required_providers {
    google = {
      source  = "hashicorp/google"
      version = "6.50.0"
    }
  }
}

variable "project" {
  type        = string
  description = "Project to create everything in."
}

variable "zone" {
  type        = string
  description = "Zone of the machines."
  default     = "us-central1-a"
}

variable "bucket" {
  type        = string
  description = "Name of an existing bucket; the jobs are below gs://BUCKET/jobs."
}

variable "package" {
  type        = string
  description = "Requirement of pip: outlast[gcs] @ https://HOST/outlast.whl#sha256=DIGEST."

  validation {
    condition     = can(regex("^outlast\\[gcs\\] @ https://\\S+#sha256=[0-9a-f]{64}$", var.package))
    error_message = "The package must be named with [gcs], an https URL and its sha256."
  }
}

variable "subnetwork" {
  type        = string
  description = "Subnetwork of the machines, with a way out (Cloud NAT) and no rule that lets others in."
}

variable "secure_boot" {
  type        = bool
  description = "Secure boot. Switch it off where drivers are not signed."
  default     = true
}

variable "machine_type" {
  type        = string
  description = "Machine type."
  default     = "n1-standard-4"
}

variable "image" {
  type        = string
  description = "Image with Python 3.11 or newer, and drivers where there are GPUs."
  default     = "debian-cloud/debian-12"
}

provider "google" {
  project = var.project
  zone    = var.zone
}

resource "google_service_account" "outlast" {
  account_id   = "outlast"
  display_name = "Outlast trainings"
}

# A root needs the permissions to read, write, list and delete files.
resource "google_storage_bucket_iam_member" "outlast" {
  bucket = var.bucket
  role   = "roles/storage.objectUser"
  member = "serviceAccount:${google_service_account.outlast.email}"
}

resource "google_compute_instance_template" "outlast" {
  name_prefix  = "outlast-"
  machine_type = var.machine_type

  disk {
    source_image = var.image
    boot         = true
    disk_size_gb = 50
  }

  network_interface {
    subnetwork = var.subnetwork
  }

  shielded_instance_config {
    enable_secure_boot = var.secure_boot
  }

  scheduling {
    provisioning_model          = "SPOT"
    preemptible                 = true
    automatic_restart           = false
    on_host_maintenance         = "TERMINATE"
    instance_termination_action = "STOP"
  }

  metadata = {
    outlast-root    = "gs://${var.bucket}/jobs"
    outlast-package = var.package
    outlast-unit    = file("${path.module}/../systemd/outlast.service")
    startup-script   = file("${path.module}/startup.sh")

    block-project-ssh-keys = "true"
    enable-oslogin         = "TRUE"
  }

  service_account {
    email  = google_service_account.outlast.email
    scopes = ["https://www.googleapis.com/auth/devstorage.read_write"]
  }

  lifecycle {
    create_before_destroy = true
  }
}

resource "google_compute_instance_group_manager" "outlast" {
  name               = "outlast"
  base_instance_name = "outlast"
  target_size        = 1

  version {
    instance_template = google_compute_instance_template.outlast.self_link_unique
  }
}

output "root" {
  value       = "gs://${var.bucket}/jobs"
  description = "OUTLAST_ROOT for `outlast list`, `logs` and `stop` from anywhere."
}
