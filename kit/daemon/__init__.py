"""Named deployments: they belong to a daemon of the user, outlive kernels, and are shared by them.

    kernel --hello--> daemon (registry: name -> process)
      ^                 | hands the connection over
      '--- link ----> process of the deployment: sessions --> Dispatcher --> workers, hosts

The daemon knows names and processes and never touches data or handlers. Each deployment has a process of
its own, started with the folder, search path, environment and Python of the kernel that served it, so that
modules of two notebooks don't meet, and a crash ends one deployment only. All end with the daemon.
A link is a Unix socket for headers and a sealed shared-memory ring for arrays; see `link` and `wire`.
"""
