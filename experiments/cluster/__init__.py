"""A sweep as tasks of a cluster, in one shared results folder.

submissions   what was submitted: recorded in the folder, read back
slurm         what Slurm says of jobs and nodes
array_job     the script of an array job, by submitit
local_tasks   the same tasks as processes of this machine
survey        how each population stands, from files, locks and Slurm
"""
