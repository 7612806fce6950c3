#include "dense_energy/embed.h"

#define TOCO_PER_ISA "dense_energy/embed_rows.h"
#include "common/for_each_isa.h"

namespace toco {

void embed(int d, const float* factors, Embedded& pixels) {
  if (d == 2) {
    CALL_BEST_ISA(embed_rows<2>, factors, pixels);
  } else {
    CALL_BEST_ISA(embed_rows<5>, factors, pixels);
  }
}

}  // namespace toco
