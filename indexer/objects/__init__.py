"""Files that several machines may share: in a folder, or in an object store that speaks S3."""
