// SPDX-License-Identifier: GPL-2.0
/*
 * lapic_khz=: the frequency of the local APIC's timer, told by the host that makes it. To measure it takes the kernel
 * 200 ms of its start, and a busy host makes the result wrong by per cents, for as long as the guest lives.
 */
#include <linux/init.h>
#include <linux/kernel.h>
#include <asm/apic.h>

static int __init lapic_khz(char *text)
{
	unsigned int khz;

	if (!text || kstrtouint(text, 10, &khz) || !khz || khz > UINT_MAX / 1000)
		return -EINVAL;
	lapic_timer_period = khz * 1000 / HZ;
	return 0;
}
early_param("lapic_khz", lapic_khz);
