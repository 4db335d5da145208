"""Numbers of system calls, from the kernel's headers, and which of them a trainer may make."""

from __future__ import annotations

from typing import Final

_ALLOWED: Final = """
# Reading and writing.
read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek sendfile copy_file_range fsync fdatasync
# Files.
open openat openat2 creat close close_range stat fstat lstat newfstatat statx statfs fstatfs access faccessat
faccessat2 readlink readlinkat getdents getdents64 getcwd chdir fchdir truncate ftruncate fallocate fadvise64 unlink
unlinkat rename renameat renameat2 mkdir mkdirat rmdir symlink symlinkat chmod fchmod fchmodat utimensat umask flock
dup dup2 dup3 fcntl
# Memory.
mmap munmap mprotect mremap msync mincore madvise mlock munlock mlock2 brk membarrier memfd_create
# Waiting.
poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl epoll_wait epoll_pwait epoll_pwait2 eventfd eventfd2
pipe pipe2 timerfd_create timerfd_settime timerfd_gettime nanosleep clock_nanosleep clock_gettime clock_getres
gettimeofday time times pause alarm setitimer getitimer
# The channel that is open already.
recvmsg sendmsg recvfrom sendto getsockopt setsockopt getsockname getpeername shutdown
# Threads.
futex futex_waitv set_robust_list get_robust_list set_tid_address rseq sched_yield sched_getaffinity sched_setaffinity
sched_getparam sched_getscheduler sched_get_priority_max sched_get_priority_min getcpu exit exit_group wait4 waitid
# Signals.
rt_sigaction rt_sigprocmask rt_sigreturn rt_sigpending rt_sigtimedwait rt_sigsuspend sigaltstack restart_syscall
# What a process may know of itself.
getpid getppid gettid getuid geteuid getgid getegid getgroups getresuid getresgid getpgrp getpgid getsid uname sysinfo
getrusage getrlimit getpriority getrandom capget arch_prctl
"""
ALLOWED: Final = tuple(name for line in _ALLOWED.splitlines() if not line.startswith("#") for name in line.split())
"""Whatever their arguments are."""


def _numbers(text: str) -> dict[str, int]:
    return {name: int(number) for name, number in (pair.split("=") for pair in text.split())}


X86_64: Final[dict[str, int]] = _numbers(
    "read=0 write=1 readv=19 writev=20 pread64=17 pwrite64=18 preadv=295 pwritev=296 preadv2=327 pwritev2=328 lseek=8 "
    "sendfile=40 copy_file_range=326 fsync=74 fdatasync=75 open=2 openat=257 openat2=437 creat=85 close=3 close_range=436 "
    "stat=4 fstat=5 lstat=6 newfstatat=262 statx=332 statfs=137 fstatfs=138 access=21 faccessat=269 faccessat2=439 "
    "readlink=89 readlinkat=267 getdents=78 getdents64=217 getcwd=79 chdir=80 fchdir=81 truncate=76 ftruncate=77 "
    "fallocate=285 fadvise64=221 unlink=87 unlinkat=263 rename=82 renameat=264 renameat2=316 mkdir=83 mkdirat=258 rmdir=84 "
    "symlink=88 symlinkat=266 chmod=90 fchmod=91 fchmodat=268 utimensat=280 umask=95 flock=73 dup=32 dup2=33 dup3=292 "
    "fcntl=72 mmap=9 munmap=11 mprotect=10 mremap=25 msync=26 mincore=27 madvise=28 mlock=149 munlock=150 mlock2=325 brk=12 "
    "membarrier=324 memfd_create=319 poll=7 ppoll=271 select=23 pselect6=270 epoll_create=213 epoll_create1=291 "
    "epoll_ctl=233 epoll_wait=232 epoll_pwait=281 epoll_pwait2=441 eventfd=284 eventfd2=290 pipe=22 pipe2=293 "
    "timerfd_create=283 timerfd_settime=286 timerfd_gettime=287 nanosleep=35 clock_nanosleep=230 clock_gettime=228 "
    "clock_getres=229 gettimeofday=96 time=201 times=100 pause=34 alarm=37 setitimer=38 getitimer=36 recvmsg=47 sendmsg=46 "
    "recvfrom=45 sendto=44 getsockopt=55 setsockopt=54 getsockname=51 getpeername=52 shutdown=48 futex=202 futex_waitv=449 "
    "set_robust_list=273 get_robust_list=274 set_tid_address=218 rseq=334 sched_yield=24 sched_getaffinity=204 "
    "sched_setaffinity=203 sched_getparam=143 sched_getscheduler=145 sched_get_priority_max=146 sched_get_priority_min=147 "
    "getcpu=309 exit=60 exit_group=231 wait4=61 waitid=247 rt_sigaction=13 rt_sigprocmask=14 rt_sigreturn=15 "
    "rt_sigpending=127 rt_sigtimedwait=128 rt_sigsuspend=130 sigaltstack=131 restart_syscall=219 getpid=39 getppid=110 "
    "gettid=186 getuid=102 geteuid=107 getgid=104 getegid=108 getgroups=115 getresuid=118 getresgid=120 getpgrp=111 "
    "getpgid=121 getsid=124 uname=63 sysinfo=99 getrusage=98 getrlimit=97 getpriority=140 getrandom=318 capget=125 "
    "arch_prctl=158 clone=56 clone3=435 ioctl=16 prctl=157 prlimit64=302 kill=62 tkill=200 tgkill=234 socket=41 "
    "socketpair=53 connect=42 bind=49 io_uring_setup=425 keyctl=250 add_key=248 ptrace=101 process_vm_readv=310 "
    "process_vm_writev=311 pidfd_open=434 pidfd_getfd=438 bpf=321 perf_event_open=298 userfaultfd=323 mount=165 unshare=272 "
    "setns=308 chroot=161 execve=59 execveat=322 fork=57 vfork=58 seccomp=317 landlock_create_ruleset=444 "
    "landlock_add_rule=445 landlock_restrict_self=446 setrlimit=160 rt_sigqueueinfo=129 personality=135 "
)
"""Of x86_64."""

AARCH64: Final[dict[str, int]] = _numbers(
    "read=63 write=64 readv=65 writev=66 pread64=67 pwrite64=68 preadv=69 pwritev=70 preadv2=286 pwritev2=287 lseek=62 "
    "sendfile=71 copy_file_range=285 fsync=82 fdatasync=83 openat=56 openat2=437 close=57 close_range=436 fstat=80 "
    "newfstatat=79 statx=291 statfs=43 fstatfs=44 faccessat=48 faccessat2=439 readlinkat=78 getdents64=61 getcwd=17 chdir=49 "
    "fchdir=50 truncate=45 ftruncate=46 fallocate=47 fadvise64=223 unlinkat=35 renameat=38 renameat2=276 mkdirat=34 "
    "symlinkat=36 fchmod=52 fchmodat=53 utimensat=88 umask=166 flock=32 dup=23 dup3=24 fcntl=25 mmap=222 munmap=215 "
    "mprotect=226 mremap=216 msync=227 mincore=232 madvise=233 mlock=228 munlock=229 mlock2=284 brk=214 membarrier=283 "
    "memfd_create=279 ppoll=73 pselect6=72 epoll_create1=20 epoll_ctl=21 epoll_pwait=22 epoll_pwait2=441 eventfd2=19 "
    "pipe2=59 timerfd_create=85 timerfd_settime=86 timerfd_gettime=87 nanosleep=101 clock_nanosleep=115 clock_gettime=113 "
    "clock_getres=114 gettimeofday=169 times=153 setitimer=103 getitimer=102 recvmsg=212 sendmsg=211 recvfrom=207 sendto=206 "
    "getsockopt=209 setsockopt=208 getsockname=204 getpeername=205 shutdown=210 futex=98 futex_waitv=449 set_robust_list=99 "
    "get_robust_list=100 set_tid_address=96 rseq=293 sched_yield=124 sched_getaffinity=123 sched_setaffinity=122 "
    "sched_getparam=121 sched_getscheduler=120 sched_get_priority_max=125 sched_get_priority_min=126 getcpu=168 exit=93 "
    "exit_group=94 wait4=260 waitid=95 rt_sigaction=134 rt_sigprocmask=135 rt_sigreturn=139 rt_sigpending=136 "
    "rt_sigtimedwait=137 rt_sigsuspend=133 sigaltstack=132 restart_syscall=128 getpid=172 getppid=173 gettid=178 getuid=174 "
    "geteuid=175 getgid=176 getegid=177 getgroups=158 getresuid=148 getresgid=150 getpgid=155 getsid=156 uname=160 "
    "sysinfo=179 getrusage=165 getrlimit=163 getpriority=141 getrandom=278 capget=90 clone=220 clone3=435 ioctl=29 prctl=167 "
    "prlimit64=261 kill=129 tkill=130 tgkill=131 socket=198 socketpair=199 connect=203 bind=200 io_uring_setup=425 "
    "keyctl=219 add_key=217 ptrace=117 process_vm_readv=270 process_vm_writev=271 pidfd_open=434 pidfd_getfd=438 bpf=280 "
    "perf_event_open=241 userfaultfd=282 mount=40 unshare=97 setns=268 chroot=51 execve=221 execveat=281 seccomp=277 "
    "landlock_create_ruleset=444 landlock_add_rule=445 landlock_restrict_self=446 setrlimit=164 rt_sigqueueinfo=138 "
    "personality=92 "
)
"""Of aarch64, which has none of the calls that newer ones replaced."""

NUMBERS: Final = {"x86_64": X86_64, "aarch64": AARCH64}
"""By what the kernel calls the machine."""

NEWEST: Final = 451
"""Calls that are newer than this list do not exist for a trainer, so that libraries fall back on what they did before."""
