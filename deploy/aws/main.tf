# A group of spot instances that train the jobs of one bucket. The group replaces an
# interrupted instance, and the new one resumes every unfinished job.

terraform {
  required_version = ">= 1.5"
  required_providers {
    aws = {
      source  = "hashicorp/aws"
      version = "5.100.0"
    }
  }
}

variable "region" {
  type        = string
  description = "Region of all resources."
  default     = "us-east-1"
}

variable "subnets" {
  type        = list(string)
  description = "Subnets of the instances; several zones make interruptions rarer."
}

variable "bucket" {
  type        = string
  description = "Name of an existing bucket; the jobs are below s3://BUCKET/jobs."
}

variable "package" {
  type        = string
  description = "Requirement of pip: outlast[s3] @ https://HOST/outlast.whl#sha256=DIGEST."

  validation {
    condition     = can(regex("^outlast\\[s3\\] @ https://\\S+#sha256=[0-9a-f]{64}$", var.package))
    error_message = "The package must be named with [s3], an https URL and its sha256."
  }
}

variable "image" {
  type        = string
  description = "AMI with cloud-init and Python 3.11 or newer, and drivers where there are GPUs."
}

variable "instance_types" {
  type        = list(string)
  description = "Acceptable instance types."
  default     = ["m6i.xlarge", "m5.xlarge"]
}

provider "aws" {
  region = var.region
}

data "aws_iam_policy_document" "assume" {
  statement {
    actions = ["sts:AssumeRole"]
    principals {
      type        = "Service"
      identifiers = ["ec2.amazonaws.com"]
    }
  }
}

# A root needs the permissions to read, write, list and delete files.
data "aws_iam_policy_document" "bucket" {
  statement {
    actions   = ["s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:AbortMultipartUpload"]
    resources = ["arn:aws:s3:::${var.bucket}/jobs/*"]
  }
  statement {
    actions   = ["s3:ListBucket"]
    resources = ["arn:aws:s3:::${var.bucket}"]
    condition {
      test     = "StringLike"
      variable = "s3:prefix"
      values   = ["jobs", "jobs/*"]
    }
  }
  # AWS knows no prefix for this one.
  statement {
    actions   = ["s3:ListBucketMultipartUploads"]
    resources = ["arn:aws:s3:::${var.bucket}"]
  }
}

resource "aws_iam_role" "outlast" {
  name_prefix        = "outlast-"
  assume_role_policy = data.aws_iam_policy_document.assume.json
}

resource "aws_iam_role_policy" "outlast" {
  role   = aws_iam_role.outlast.id
  policy = data.aws_iam_policy_document.bucket.json
}

resource "aws_iam_instance_profile" "outlast" {
  name_prefix = "outlast-"
  role        = aws_iam_role.outlast.name
}

resource "aws_launch_template" "outlast" {
  name_prefix = "outlast-"
  image_id    = var.image

  iam_instance_profile {
    arn = aws_iam_instance_profile.outlast.arn
  }

  # Outlast uses IMDSv2. One hop: a container on the machine cannot get the role's keys.
  metadata_options {
    http_endpoint               = "enabled"
    http_tokens                 = "required"
    http_put_response_hop_limit = 1
    instance_metadata_tags      = "disabled"
  }

  user_data = base64encode(templatefile("${path.module}/user-data.yaml", {
    root    = "s3://${var.bucket}/jobs"
    package = var.package
    unit    = filebase64("${path.module}/../systemd/outlast.service")
  }))
}

resource "aws_autoscaling_group" "outlast" {
  name_prefix         = "outlast-"
  min_size            = 1
  max_size            = 1
  vpc_zone_identifier = var.subnets

  mixed_instances_policy {
    instances_distribution {
      on_demand_percentage_above_base_capacity = 0
      spot_allocation_strategy                 = "price-capacity-optimized"
    }
    launch_template {
      launch_template_specification {
        launch_template_id = aws_launch_template.outlast.id
        version            = "$Latest"
      }
      dynamic "override" {
        for_each = var.instance_types
        content {
          instance_type = override.value
        }
      }
    }
  }
}

output "root" {
  value       = "s3://${var.bucket}/jobs"
  description = "OUTLAST_ROOT for `outlast list`, `logs` and `stop` from anywhere."
}
